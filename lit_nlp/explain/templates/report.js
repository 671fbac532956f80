
const form = document.getElementById("filter");
const count = document.getElementById("count");
const cards = [...document.querySelectorAll(".card")].map((element) => ({
  element,
  verdict: element.dataset.verdict,
  labels: element.dataset.labels.split(" "),
  text: element.querySelector(".texts").textContent.toLowerCase(),
}));

function filter() {
  const wanted = new FormData(form);
  const verdict = wanted.get("verdict") || "";
  const label = wanted.get("label") || "";
  const search = wanted.get("search").trim().toLowerCase();
  let shown = 0;
  for (const card of cards) {
    const fits =
      (!verdict || card.verdict === verdict) &&
      (!label || card.labels.includes(label)) &&
      card.text.includes(search);
    card.element.hidden = !fits;
    shown += fits;
  }
  count.textContent = `${shown} of ${cards.length} shown`;
}

form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = cards.length < 2;
filter();
