// ---- small helpers: all text goes through textContent, so no text becomes HTML --------------

/** An element: el("p", {class: "note"}, "text", otherElement, …) */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node[name] = value;
    else if (value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter(child => child !== null && child !== undefined));
  return node;
}
/** A text in both languages; the style sheet shows one of them. */
const t = (en, zh) => [el("span", { lang: "en" }, en), el("span", { lang: "zh" }, zh)];
const num = (x, digits = 2) => x === null || x === undefined ? "–" : x.toFixed(digits).replace("-0.00", "0.00");
/** Control characters, also those that change the direction of writing, become visible. */
const visible = text => text.replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
  c => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
const oneLine = text => visible(text).replaceAll("\n", "⏎");
const dialogue = messages => el("p", { class: "asked", dir: "auto" }, messages.map(m => visible(m.content)).join("\n→ "));
const tint = (x, most) => `background:color-mix(in srgb, var(--${x < 0 ? "loss" : "reward"}) ` +
  `${Math.round(Math.min(1, Math.abs(x) / most) * 65)}%, transparent)`;
/** Buttons of which one is pressed: choose(names, onchoose) */
function choose(labels, act, first = 0) {
  const buttons = labels.map((label, i) => el("button", { "aria-pressed": i === first, onclick: () => pick(i) }, label));
  function pick(i) {
    buttons.forEach((b, j) => b.setAttribute("aria-pressed", i === j));
    act(i);
  }
  return el("div", { class: "bar" }, buttons);
}
/** A slider with its label; act(i) is called with 0 … n - 1. */
function slider(n, label, act, first = 0) {
  const shown = el("span"), input = el("input", { type: "range", min: 0, max: n - 1, value: first, "aria-label": "step" });
  input.oninput = () => { shown.replaceChildren(...[label(+input.value)].flat()); act(+input.value); };
  shown.replaceChildren(...[label(first)].flat());
  return el("div", { class: "bar" }, input, shown);
}
/** A table from rows of cells; numbers stand on the right. */
const table = (head, rows) => el("div", { class: "scroll" }, el("table", {},
  head && el("thead", {}, el("tr", {}, head.map(h => el("th", { scope: "col" }, h)))),
  el("tbody", {}, rows.map(row => el("tr", {}, row.map(c =>
    el("td", typeof c === "string" && /^[-–+\d.%]/.test(c) ? { class: "n" } : {}, c)))))));
const meter = (share, colour = "model") =>
  el("span", { class: "meter", style: `--c:var(--${colour});width:${Math.max(1, Math.round(share * 90))}px` });
const missing = (en, zh) => el("p", { class: "card note" }, t(en, zh));
const kindNames = { fact: "事实", "follow-up": "追问", sum: "加法", unknown: "未知的人", wish: "有害的愿望", story: "故事", all: "全部" };
const kind = name => t(name, kindNames[name] ?? name);

/** Fill the navigation and the <div class="view"> of each section; the button switches the language. */
function start(views) {
  for (const section of document.querySelectorAll("section")) {
    document.getElementById("links").append(el("a", { href: `#${section.id}` }, t(section.dataset.en, section.dataset.zh)));
    if (section.id in views) views[section.id](section.querySelector(".view"));
  }
  document.getElementById("switch").onclick = () => {
    const lang = document.documentElement.dataset.lang === "en" ? "zh" : "en";
    document.documentElement.dataset.lang = document.documentElement.lang = lang;
  };
}
