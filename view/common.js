// ---- small helpers: all text goes through textContent, so no text becomes HTML --------------

/** Put children into an element, in place of what it has. They may stand in lists; null is none. If one of its buttons
    had the focus, the new button in that place gets it. */
function put(node, ...children) {
  const buttons = node.getElementsByTagName("button"), at = [...buttons].indexOf(document.activeElement);
  node.replaceChildren(...children.flat(9).filter(child => child !== null && child !== undefined));
  buttons[at]?.focus();
  return node;
}
/** An element of HTML or SVG: el("p", {class: "note"}, "text", otherElement, …) */
function el(tag, attributes = {}, ...children) {
  const space = /^(svg|rect|text|path|circle|polyline)$/.test(tag) ? "2000/svg" : "1999/xhtml";
  const node = document.createElementNS(`http://www.w3.org/${space}`, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node[name] = value;
    else if (value !== undefined && value !== false) node.setAttribute(name, value);
  }
  return put(node, ...children);
}
/** A text in both languages; the style sheet shows one of them. */
const t = (en, zh) => [el("span", { lang: "en" }, en), el("span", { lang: "zh" }, zh)];
const num = (x, digits = 2) => x === null || x === undefined ? "–" : x.toFixed(digits).replace(/^-(0\.0*)$/, "$1");
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
    el("td", /^[-–+\d.%]/.test([c].flat()[0]) ? { class: "n" } : {}, c)))))));
const meter = (share, colour = "model") =>
  el("span", { class: "meter", style: `--c:var(--${colour});width:${Math.max(1, Math.round(share * 90))}px` });
const missing = (en, zh) => el("p", { class: "card note" }, t(en, zh));
const madeBy = command => command ? note(t("made by", "生成命令："), " ", el("code", {}, command)) : null;
/** One of the answers that a person ranks, in the order of the clicks: its place so far, and its text. */
const ranked = (place, text) => [el("b", {}, place === undefined ? "·" : `${place + 1}`), " " + visible(text)];

// ---- curves, for the report and for the live page ---------------------------------------------

/** The panels: stage, title, and lines of [rows of a log, field, name, colour, style]. x is the field "step". */
function panels({ pretrain, sft, reward, ppo }, best) {
  const seen = ppo.filter(row => row.split), steps = ppo.filter(row => !row.split);
  const byDistance = rows => rows.map(row => ({ ...row, step: row.kl === null ? null : Math.sqrt(Math.max(row.kl, 0)) }));
  const losses = rows => [[rows, "loss", t("training", "训练"), "loss", "dotted"], [rows, "val_loss", t("held out", "留出"), "loss", "dots"],
    [rows, "entropy", t("floor: the text's entropy", "下限：文本的熵"), "text", "dashed"]];
  return [
    ["pretrain", t("1 Pretraining: loss (nats per token)", "1 预训练：损失（奈特/词元）"), losses(pretrain)],
    ["sft", t("2 Supervised fine-tuning: loss", "2 监督微调：损失"), losses(sft)],
    ["reward", t("3 Reward model: accuracy on pairs", "3 奖励模型：配对的准确率"), [
      [reward, "val_accuracy", t("held out", "留出"), "reward", "dots"],
      [reward, "ceiling", t("ceiling: the labels' noise", "上限：标注的噪声"), "text", "dashed"]]],
    ["ppo", t("4 PPO: learned score and distance, held-out prompts", "4 PPO：奖励模型的分数与距离，留出的提示"), [
      [seen, "score", t("learned score", "奖励模型的分数"), "reward", "dots"],
      [seen, "kl", t("KL from SFT", "与 SFT 的 KL"), "text", "dotted"]]],
    ["ppo", t("4 PPO: true grade, 1 to 7", "4 PPO：真实评分，1 到 7"), [
      [seen, "grade", t("true grade", "真实评分"), "checkpoint", "dots"]]],
    ["ppo", t("Learned score against √KL", "奖励模型的分数，横轴 √KL"), [
      [byDistance(seen), "score", "PPO", "reward", "dots"],
      [byDistance(best), "score", t("best of n", "n 选优"), "text", "dashed dots"]]],
    ["ppo", t("True grade against √KL", "真实评分，横轴 √KL"), [
      [byDistance(seen), "grade", "PPO", "checkpoint", "dots"],
      [byDistance(best), "grade", t("best of n", "n 选优"), "text", "dashed dots"]]],
    ["ppo", t("PPO, each iteration", "PPO，每次迭代"), [
      [steps, "ppo/val/explained_var", t("variance that the critic explains", "评论家解释的方差比例"), "model", ""],
      [steps, "ppo/policy/clipfrac", t("clipped tokens", "被裁剪的词元"), "loss", ""]]],
  ];
}
/** About five round numbers between low and high. */
function ticks(low, high) {
  const size = 10 ** Math.floor(Math.log10((high - low) / 5)), step = size * [1, 2, 5, 10].find(k => k * size >= (high - low) / 5);
  const first = Math.ceil(low / step), count = Math.floor(high / step + 1e-6) - first + 1;
  return Array.from({ length: count }, (_, i) => +((first + i) * step).toPrecision(6));
}
/** Lines of [points, colour, style] as SVG. Styles: dashed, dotted, dots (one at each point). */
function draw(lines, W = 440, H = 260) {
  const [[x0, x1], [y0, y1]] = [0, 1].map(axis => {
    const values = lines.flatMap(([points]) => points.map(point => point[axis]));
    const low = Math.min(...values), high = Math.max(...values);
    return low < high ? [low, high] : [low - 0.5, high + 0.5];
  });
  const right = x => 52 + (x - x0) / (x1 - x0) * (W - 76), down = y => H - 26 - (y - y0) / (y1 - y0) * (H - 34);
  const text = (x, y, anchor, value) => el("text", { x, y, "text-anchor": anchor, "font-size": 13, fill: "currentColor" }, `${value}`);
  return el("svg", { viewBox: `0 0 ${W} ${H}`, role: "img" }, ticks(x0, x1).map(x => text(right(x), H - 6, "middle", x)),
    ticks(y0, y1).map(y => [text(46, down(y) + 4, "end", y), el("path", { d: `M52,${down(y)}H${W - 24}`, stroke: "currentColor", opacity: 0.2 })]),
    lines.map(([points, colour, style]) => [
      el("polyline", { points: points.map(([x, y]) => `${right(x)},${down(y)}`).join(" "), class: style, stroke: `var(--${colour})` }),
      style.includes("dots") || points.length === 1 ?
        points.map(([x, y]) => el("circle", { cx: right(x), cy: down(y), r: 2.5, fill: `var(--${colour})` })) : null]));
}
/** A panel: its lines, each with its last number, and the command that made them. null without a point. */
function figure(title, lines, command) {
  const found = lines.map(([rows, field, ...rest]) => [rows.map(row => [row.step, row[field]]).filter(point => point.every(Number.isFinite)), ...rest])
    .filter(([points]) => points.length);
  return found.length ? el("figure", {}, draw(found.map(([points, , colour, style]) => [points, colour, style])),
    el("figcaption", {}, el("b", {}, title), el("ul", { class: "legend" }, found.map(([points, name, colour, style]) =>
      el("li", { style: `--c:var(--${colour})`, class: style }, name, ` ${num(points.at(-1)[1], 3)}`))), madeBy(command))) : null;
}
const curves = (logs, best = [], commands = {}) =>
  panels(logs, best).map(([stage, title, lines]) => figure(title, lines, commands[stage])).filter(Boolean);

// ---- the sections ---------------------------------------------------------------------------

/** Fill the navigation and the sections, in the browser's language; the button switches it. A view gets the data of
    its name; without them the section says which command makes them. */
function start(views) {
  for (const section of document.querySelectorAll("section")) {
    const { en, zh, made, needs } = section.dataset, box = el("div", { class: "view" }), found = data[section.id];
    document.getElementById("links").append(el("a", { href: `#${section.id}` }, t(en, zh)));
    const absent = needs && !(found?.length ?? found);
    section.append(...[absent ? null : madeBy(data.commands?.[made]), box].filter(Boolean));
    if (absent) put(box, missing(`\`${needs}\` makes this view.`, `先运行 \`${needs}\`，这里才有内容。`));
    else views[section.id](box, found);
  }
  const speak = lang => { document.documentElement.dataset.lang = document.documentElement.lang = lang; };
  document.getElementById("switch").onclick = () => speak(document.documentElement.lang === "en" ? "zh" : "en");
  speak(navigator.language.startsWith("zh") ? "zh" : "en");
}
