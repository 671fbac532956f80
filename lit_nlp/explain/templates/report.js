// Draws the cards from the data in the page. Every text reaches the page as a text node or an attribute's
// value, never as markup. What the first cards look like without this script is in report.html.j2: mend both.
const PAGE = 20;
const MANY = 6; // choices, above which a menu replaces buttons
const LARGE = 1500; // cells, above which a table is closed at first
const LEVELS = 8;
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("filter");
const main = document.getElementById("cards");
const more = document.getElementById("more");
const count = document.getElementById("count");

const SVG = new Set(["svg", "rect"]);
function make(tag, attributes = {}, ...children) {
  const element = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null));
  return element;
}
const bdi = (text) => make("bdi", {}, text);
const level = (score, scale) => (scale ? Math.floor((LEVELS * Math.abs(score)) / scale + 0.5) : 0);
const side = (score) => (score > 0 ? "for" : "against");
const plain = (name) => name.replaceAll("_", " ");

function signed(number) {
  const size = Math.abs(number);
  const digits = size >= 0.01 || !size ? size.toFixed(2) : Number(size.toPrecision(1)).toString();
  return (number < 0 ? "−" : "+") + digits;
}
const short = (number) => (Math.abs(number) < 0.005 ? "0" : signed(number));
function percent(share) {
  if (share >= 0.9995 && share < 1) return "over 99.9%";
  return share > 0 && share < 0.0005 ? "under 0.1%" : `${(100 * share).toFixed(1)}%`;
}

function wordsOf(part) {
  const words = [];
  part.pieces.forEach((piece, i) => {
    const word = part.words[i];
    if (word >= 0) words[word] = (words[word] || "") + piece;
  });
  return words;
}

// One card

function pieces(part, scores, scale, start, end) {
  return part.pieces.slice(start, end).map((piece, i) => {
    const word = part.words[start + i];
    const score = word >= 0 ? scores[word] : 0;
    const strength = level(score, scale);
    return strength ? make("span", { class: `${side(score)} level-${strength}`, title: signed(score) }, piece) : piece;
  });
}

function textOf(part, scores, scale, mark, kind) {
  const end = part.pieces.length;
  const none = part.words.every((word) => word < 0) ? make("span", { class: "nothing" }, "no words") : null;
  if (!mark || mark[0] === mark[1]) return [none, ...pieces(part, scores, scale, 0, end)];
  return [
    ...pieces(part, scores, scale, 0, mark[0]),
    make("mark", { class: kind }, pieces(part, scores, scale, ...mark)),
    ...pieces(part, scores, scale, mark[1], end),
  ];
}

// The written text with each of its tokens as a radio button.
function tokens(card, view, part, scores) {
  const found = [...new Map(card.views.filter((each) => each.place !== null).map((each) => [each.place, each])).values()];
  found.sort((a, b) => a.place - b.place);
  const drawn = [];
  let done = 0;
  for (const token of found) {
    const start = Math.max(done, token.mark[0]);
    const end = Math.max(start, token.mark[1]);
    drawn.push(...pieces(part, scores, view.scale, done, start));
    const shown = start < end ? pieces(part, scores, view.scale, start, end) : [make("small", {}, token.target)];
    const input = make("input", {
      type: "radio", name: `place-${card.number}`, value: token.place, checked: token.place === view.place,
      "aria-label": `${token.target}, token ${token.place + 1} of ${found.length}`,
    });
    drawn.push(make("label", { class: "token" }, input, make("span", {}, shown)));
    done = end;
  }
  return [...drawn, ...pieces(part, scores, view.scale, done, part.pieces.length)];
}

function bar(share) {
  return make("svg", { "aria-hidden": "true" }, make("rect", { width: `${(100 * share).toFixed(1)}%`, height: "100%" }));
}
function bars(items, kind = "") {
  return make("ol", { class: `bars ${kind}` }, items.map(([name, share, number, side]) =>
    make("li", { class: side }, make("span", { class: "name" }, name), bar(share), make("span", { class: "number" }, number)),
  ));
}
function wordBar(card, view, p, w) {
  const part = card.parts[view.parts[p]];
  const score = view.scores[p][w];
  const name = [bdi(wordsOf(part)[w]), ...(view.parts.length > 1 ? [" ", make("small", {}, part.name)] : [])];
  return [name, view.scale ? Math.abs(score) / view.scale : 0, signed(score), `${side(score)}-bars`];
}
function strongest(card, view, which, heading) {
  const found = view.strongest[which].map(([p, w]) => wordBar(card, view, p, w));
  return make("section", {}, make("h3", {}, heading, " ", bdi(view.target)),
    found.length ? bars(found) : make("p", { class: "nothing" }, "No word"));
}
const CHANCES = { class: "Probability", span: "Most probable answers", token: "What might stand there" };
function chances(view) {
  if (!view.probabilities.length) return null;
  return make("section", {}, make("h3", {}, CHANCES[view.kind]),
    bars(view.probabilities.map(([name, share]) => [bdi(name), share, percent(share)])),
    view.others ? make("p", { class: "nothing" }, `and ${view.others} less probable`) : null);
}

// Buttons, or a menu where there are many, that choose the view by one of its keys.
function choice(card, view, key, legend, values, show = (value) => value) {
  if (values.length < 2) return null;
  const name = `${key}-${card.number}`;
  if (values.length > MANY) {
    return make("label", {}, legend, " ", make("select", { name }, values.map((value) =>
      make("option", { value, dir: "auto", selected: value === view[key] }, show(value)))));
  }
  return make("fieldset", {}, make("legend", {}, legend), values.map((value) => make("label", {},
    make("input", { type: "radio", name, value, checked: value === view[key] }), make("span", {}, bdi(show(value))))));
}
function choices(card, view) {
  const beside = card.views.filter((each) => each.place === view.place);
  const values = (key) => [...new Set(beside.map((each) => each[key]))];
  const found = [
    choice(card, view, "target", "Explain", values("target")),
    choice(card, view, "method", "Method", values("method"), plain),
  ].filter(Boolean);
  return found.length ? make("div", { class: "choices" }, found) : null;
}
// The view that has the new value, and else is as near to the present one as there is.
function nearest(card, view, key, value) {
  const same = (each) => 4 * (each.place === view.place) + 2 * (each.target === view.target) + (each.method === view.method);
  const fits = card.views.filter((each) => String(each[key]) === value);
  return fits.reduce((best, each) => (same(each) > same(best) ? each : best));
}

function everyWord(card, view) {
  const total = view.scores.flat().length;
  return folded(card, "words", `All ${total} words in numbers`, false, () => bars(
    view.scores.flatMap((scores, p) => scores.map((_, w) => wordBar(card, view, p, w))), "every"));
}
function examples(card) {
  if (!card.influences.length) return null;
  const scale = Math.max(...card.influences.map((each) => Math.abs(each.score)));
  const list = (heading, found, kind) => make("section", {}, make("h3", {}, heading), found.length
    ? make("ul", { class: `examples ${kind}-bars` }, found.map((each) => make("li", {},
      bar(scale ? Math.abs(each.score) / scale : 0),
      make("span", { class: "number" }, signed(each.score)),
      make("p", { class: "text", dir: "auto" }, each.text),
      make("p", { class: "nothing" }, ...(each.label === undefined || each.label === null ? [] : [bdi(String(each.label)), " · "]), bdi(String(each.where ?? ""))))))
    : make("p", { class: "nothing" }, "None"));
  return folded(card, "examples", `${card.influences.length} training examples that moved this`, false, () => make("div", {},
    make("p", { class: "quiet" }, "Examples that the model found hard weigh most, so that the same may stand below many texts."),
    make("div", { class: "columns" },
      list("Spoke for it", card.influences.filter((each) => each.score > 0), "for"),
      list("Spoke against it", card.influences.filter((each) => each.score < 0), "against"))));
}
// Something below a summary that is drawn when it is first opened, and stays open when another view is chosen.
function folded(card, key, summary, open, draw) {
  const details = make("details", { open: card.opened[key] ?? open }, make("summary", {}, summary));
  const fill = () => {
    card.opened[key] = details.open;
    if (details.open && details.children.length === 1) details.append(draw());
  };
  details.addEventListener("toggle", fill);
  fill();
  return details;
}

// Written tokens by words read: a table of scores, in which arrows move and a row's head chooses its token.
function heat(card, view) {
  const first = new Map();
  for (const each of card.views) {
    if (each.place !== null && each.method === view.method && String(each.parts) === String(view.parts) && !first.has(each.place)) first.set(each.place, each);
  }
  const rows = [...first.values()].sort((a, b) => a.place - b.place);
  if (rows.length < 2) return null;
  const columns = view.parts.flatMap((p, at) => wordsOf(card.parts[p]).map((word, w) => ({ word, p: at, w })));
  const title = `${card.parts[view.parts.at(-1)].name} by ${card.parts[view.parts[0]].name.toLowerCase()}: which word led to which token`;
  return folded(card, "heat", title, rows.length * columns.length <= LARGE, () => heatTable(card, view, rows, columns));
}
function heatTable(card, view, rows, columns) {
  const about = make("output", { class: "about" }, "Point at a cell, or move to it with the arrow keys, to read it.");
  const largest = Math.max(...rows.map((row) => row.scale));
  const edge = (column) => (column.p === 1 && column.w === 0 ? "first" : "");
  const table = make("table", { class: "heat" });
  const paint = () => {
    const head = columns.map((column) => make("th", { scope: "col", class: edge(column) }, bdi(column.word)));
    const body = rows.map((row) => make("tr", { class: row.place === view.place ? "chosen" : "" },
      make("th", { scope: "row" }, make("button", { type: "button", "data-place": row.place, "aria-pressed": String(row.place === view.place) }, bdi(row.target))),
      columns.map((column) => {
        if (column.p === 1 && column.w >= row.read) return make("td", { class: `unread ${edge(column)}` });
        const score = row.scores[column.p][column.w];
        const strength = level(score, card.alike ? largest : row.scale);
        return make("td", { class: `${side(score)} level-${strength} ${edge(column)}`, tabindex: "-1" }, short(score));
      })));
    table.replaceChildren(make("thead", {}, make("tr", {}, make("td"), head)), make("tbody", {}, body));
    const start = table.querySelector("td[tabindex]");
    if (start) start.tabIndex = 0;
  };
  const tell = (cell) => {
    if (!cell?.hasAttribute("tabindex")) return;
    const row = rows[cell.parentNode.rowIndex - 1];
    const column = columns[cell.cellIndex - 1];
    const score = row.scores[column.p][column.w];
    const sum = row.scores.flat().reduce((total, each) => total + Math.abs(each), 0);
    const chance = row.probability === null ? "" : `, written with probability ${percent(row.probability)}`;
    const does = !view.signed ? "counts for" : score > 0 ? "speaks for" : "speaks against";
    about.replaceChildren(bdi(column.word), ` ${does} `, bdi(row.target),
      `: ${signed(score)}, ${percent(sum ? Math.abs(score) / sum : 0)} of all that counted for this token${chance}`);
  };
  table.addEventListener("mouseover", (event) => tell(event.target.closest("td")));
  table.addEventListener("focusin", (event) => tell(event.target.closest("td")));
  table.addEventListener("keydown", (event) => {
    const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
    const cell = event.target.closest("td");
    const next = cell && (down || right) && table.rows[cell.parentNode.rowIndex + down]?.cells[cell.cellIndex + right];
    if (!next?.hasAttribute("tabindex")) return;
    event.preventDefault();
    cell.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  table.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) show(card, nearest(card, view, "place", button.dataset.place), `[data-place="${button.dataset.place}"]`);
  });
  const option = (value, name) => make("label", {},
    make("input", { type: "radio", name: `alike-${card.number}`, value, checked: Boolean(card.alike) === Boolean(value) }), make("span", {}, name));
  const scale = make("fieldset", {}, make("legend", {}, "Colours"), option("", "each token by itself"), option("1", "all tokens alike"));
  scale.addEventListener("change", (event) => {
    event.stopPropagation();
    card.alike = Boolean(event.target.value);
    paint();
  });
  paint();
  return make("div", {}, make("div", { class: "choices" }, scale, legend()),
    make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Scores of words by token" }, table), about);
}
function legend() {
  const cell = (kind, strength, text) => make("span", { class: `${kind} level-${strength}` }, text);
  return make("p", { class: "key" }, cell("against", 8, " − "), cell("against", 4, " − "), " against · for ", cell("for", 4, " + "), cell("for", 8, " + "),
    " the strongest colour is the largest score · ", make("span", { class: "unread" }, "not written yet"));
}

function draw(card) {
  const view = card.chosen ?? card.views[0];
  const spoken = view.probabilities.length;
  const texts = view.parts.flatMap((p, at) => {
    const part = card.parts[p];
    const scores = view.scores[at];
    if (at === 1 && view.place !== null) {
      return make("fieldset", { class: "text tokens", dir: "auto" }, make("legend", {}, part.name, make("small", {}, " choose a token to see what led to it")), tokens(card, view, part, scores));
    }
    return [view.parts.length > 1 ? make("h3", {}, part.name) : null,
      make("p", { class: "text", dir: "auto" }, textOf(part, scores, view.scale, at ? view.mark : null, view.kind))];
  });
  const reference = card.reference === null ? [] : [make("h3", {}, "Reference"), make("p", { class: "text plain", dir: "auto" }, card.reference)];
  card.element.replaceChildren(
    make("header", {},
      make("h2", { id: `card-${card.number}` },
        card.verdict ? make("span", { class: `verdict ${card.verdict}` }, card.verdict === "right" ? "✓ Right" : "✗ Wrong") : null,
        card.head.map(([caption, value, aside]) => make("span", {}, caption, ...(value ? [" ", bdi(value)] : []), ...(aside ? [" ", make("span", { class: "quiet" }, aside)] : [])))),
      make("span", { class: "quiet" }, `No. ${card.number} · row ${card.row}`)),
    ...[choices(card, view)].filter(Boolean),
    make("div", { class: "texts" }, texts, reference),
    make("div", { class: "columns" },
      strongest(card, view, 0, !view.signed ? "Counts most for" : spoken ? "Speaks for" : "Raises"),
      view.signed ? strongest(card, view, 1, spoken ? "Speaks against" : "Lowers") : null, chances(view)),
    ...[heat(card, view), everyWord(card, view), examples(card)].filter(Boolean),
    make("footer", {}, view.notes.join(" "), view.warning ? " " : null, view.warning ? make("strong", {}, view.warning) : null,
      " ", make("span", { class: "quiet" }, plain(view.method))),
  );
}
function show(card, view, focus) {
  const scrolled = card.element.querySelector("table.heat")?.parentNode.scrollLeft;
  card.chosen = view;
  draw(card);
  const table = card.element.querySelector("table.heat");
  if (table && scrolled) table.parentNode.scrollLeft = scrolled;
  card.element.querySelector(focus)?.focus({ preventScroll: true });
}
function place(card) {
  if (!card.element) {
    card.opened = {};
    card.element = make("article", { class: "card", "aria-labelledby": `card-${card.number}` });
    card.element.addEventListener("change", (event) => {
      const key = event.target.name.split("-")[0];
      const focus = event.target.matches("select") ? `select[name="${event.target.name}"]` : `input[name="${event.target.name}"]:checked`;
      if (["place", "target", "method"].includes(key)) show(card, nearest(card, card.chosen ?? card.views[0], key, event.target.value), focus);
    });
    draw(card);
  }
  return card.element;
}

// All cards

const ORDERS = {
  sure: (a, b) => (b.confidence ?? -1) - (a.confidence ?? -1),
  unsure: (a, b) => (a.confidence ?? 2) - (b.confidence ?? 2),
  long: (a, b) => b.length - a.length,
  short: (a, b) => a.length - b.length,
  number: (a, b) => a.number - b.number,
};
for (const card of data) card.search = [...card.parts.map((part) => part.pieces.join("")), card.reference ?? ""].join("\n").toLowerCase();
let fitting = [];
let placed = 0;

function extend(by) {
  const next = fitting.slice(placed, placed + by);
  main.append(...next.map(place));
  placed += next.length;
  more.hidden = placed >= fitting.length;
  more.textContent = `Show more (${fitting.length - placed} left)`;
}
function filter() {
  const wanted = Object.fromEntries(new FormData(form));
  const search = wanted.search.trim().toLowerCase();
  fitting = data.filter((card) =>
    (!wanted.verdict || card.verdict === wanted.verdict) &&
    (!wanted.labels || card.labels.includes(wanted.labels)) &&
    (!wanted.predicted || card.predicted.includes(wanted.predicted)) &&
    card.search.includes(search));
  if (wanted.sort) fitting.sort(ORDERS[wanted.sort]);
  count.textContent = `${fitting.length} of ${data.length} shown`;
  main.replaceChildren();
  placed = 0;
  extend(PAGE);
}

form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
more.addEventListener("click", () => {
  const last = main.lastElementChild;
  extend(PAGE);
  const next = last?.nextElementSibling;
  next?.setAttribute("tabindex", "-1");
  next?.focus({ preventScroll: true });
});
const near = new IntersectionObserver((entries) => {
  if (!entries.some((entry) => entry.isIntersecting)) return;
  extend(PAGE);
  near.unobserve(more); // it tells of changes only: ask anew, should the button still be near
  near.observe(more);
}, { rootMargin: "600px" });
near.observe(more);
addEventListener("beforeprint", () => extend(Infinity));
form.hidden = data.length < 2;
filter();
