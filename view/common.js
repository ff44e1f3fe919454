// ---- small helpers: all text goes through textContent, so no text becomes HTML --------------

/** Put children into an element, in place of what it has. They may stand in lists; null is none. */
function put(node, ...children) {
  node.replaceChildren(...children.flat(9).filter(child => child !== null && child !== undefined));
  return node;
}
/** An element of HTML or SVG: el("p", {class: "note"}, "text", otherElement, …) */
function el(tag, attributes = {}, ...children) {
  const space = /^(svg|rect|text)$/.test(tag) ? "2000/svg" : "1999/xhtml";
  const node = document.createElementNS(`http://www.w3.org/${space}`, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node[name] = value;
    else if (value !== undefined && value !== false) node.setAttribute(name, value);
  }
  return put(node, ...children);
}
/** A text in both languages; the style sheet shows one of them. */
const t = (en, zh) => [el("span", { lang: "en" }, en), el("span", { lang: "zh" }, zh)];
const num = (x, digits = 2) => x === null || x === undefined ? "–" : x.toFixed(digits).replace("-0.00", "0.00");
const percent = (x, digits = 1) => `${(100 * x).toFixed(digits)}%`;
/** Control characters, also those that change the direction of writing, become visible. */
const visible = text => text.replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
  c => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
const oneLine = text => visible(text).replaceAll("\n", "⏎");
const dialogue = messages => el("p", { class: "asked", dir: "auto" }, messages.map(m => visible(m.content)).join("\n→ "));
const note = (...children) => el("p", { class: "note" }, children);
const card = (...children) => el("div", { class: "card" }, children);
/** A background that is stronger for a share of 1 than for one of 0; negative ones have the other colour. */
const tint = (share, hue = "reward") => `background:color-mix(in srgb, var(--${share < 0 ? "loss" : hue}) ` +
  `${Math.round(Math.min(1, Math.abs(share)) * 65)}%, transparent)`;
/** Tokens in a row, and one of them: with onclick it is a button; below: a number. */
const tokens = (...children) => el("div", { class: "tokens" }, children);
const tok = (text, { marks = "", ...attributes } = {}, below = null) =>
  el(attributes.onclick ? "button" : "span", { class: `tok ${marks}`, ...attributes }, visible(text), below && el("small", {}, below));
/** Buttons of which one is pressed: choose(names, onchoose) */
function choose(labels, act) {
  const buttons = labels.map((label, i) => el("button", { "aria-pressed": i === 0, onclick: () => {
    buttons.forEach((b, j) => b.setAttribute("aria-pressed", i === j));
    act(i);
  } }, label));
  return el("div", { class: "bar" }, buttons);
}
/** A table from rows of cells; numbers stand on the right. */
const table = (head, rows) => el("div", { class: "scroll" }, el("table", {},
  head && el("thead", {}, el("tr", {}, head.map(h => el("th", { scope: "col" }, h)))),
  el("tbody", {}, rows.map(row => el("tr", {}, row.map(c =>
    el("td", typeof c === "string" && /^[-–+\d.%]/.test(c) ? { class: "n" } : {}, c)))))));
const meter = (share, colour = "model") =>
  el("span", { class: "meter", style: `--c:var(--${colour});width:${Math.max(1, Math.round(share * 90))}px` });
const missing = (en, zh) => el("p", { class: "card note" }, t(en, zh));

/** Fill the navigation and the sections, in the browser's language; the button switches it. A view gets the data of
    its name; without them the section says which command makes them. */
function start(views) {
  for (const section of document.querySelectorAll("section")) {
    const { en, zh, made, needs } = section.dataset, box = el("div", { class: "view" }), found = data[section.id];
    document.getElementById("links").append(el("a", { href: `#${section.id}` }, t(en, zh)));
    if (data.commands?.[made]) section.append(note(t("made by", "生成命令"), " ", el("code", {}, data.commands[made])));
    if (!views[section.id]) continue;
    section.append(box);
    if (needs && !(found?.length ?? found)) put(box, missing(`\`${needs}\` makes this view.`, `运行 \`${needs}\` 后才有这个视图。`));
    else views[section.id](box, found);
  }
  const speak = lang => { document.documentElement.dataset.lang = document.documentElement.lang = lang; };
  document.getElementById("switch").onclick = () => speak(document.documentElement.lang === "en" ? "zh" : "en");
  speak(navigator.language.startsWith("zh") ? "zh" : "en");
}
