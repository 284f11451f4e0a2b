"use strict";
document.documentElement.classList.add("js");

for (const compare of document.querySelectorAll(".compare")) {
  const range = compare.querySelector("input");
  const show = () => {
    compare.style.setProperty("--split", `${range.value}%`);
    range.setAttribute("aria-valuetext", `dense up to ${range.value} % of the width, pruned beyond`);
  };
  range.addEventListener("input", show);
  show();
}

for (const table of document.querySelectorAll(".scroll")) {
  const look = () => {
    const hidden = table.scrollWidth - table.clientWidth;
    table.classList.toggle("wide", hidden > 1);
    table.classList.toggle("cut", hidden - table.scrollLeft > 1);
  };
  table.addEventListener("scroll", look);
  new ResizeObserver(look).observe(table);
}

const list = document.querySelector(".samples");
const choices = [...document.querySelectorAll("input[name=model]")];
const views = [...document.querySelectorAll("input[name=view]")];
const large = document.querySelector("input[name=large]");
const choose = () => {
  const view = (views.find((one) => one.checked) ?? { value: "slider" }).value;
  for (const name of ["difference", "row"]) list.classList.toggle(name, view === name);
  list.classList.toggle("large", large.checked);
  const chosen = (choices.find((one) => one.checked) ?? { value: "0" }).value;
  const ranked = [];
  for (const sample of list.children) {
    let rank = Infinity;
    for (const shot of sample.querySelectorAll("[data-model]")) {
      const isChosen = shot.dataset.model === chosen;
      shot.hidden = view !== "row" && !isChosen;
      if (isChosen) rank = Number(shot.dataset.rank);
    }
    sample.hidden = rank === Infinity;
    ranked.push([rank, sample]);
  }
  ranked.sort((a, b) => a[0] - b[0]);
  list.append(...ranked.map((pair) => pair[1]));
};
if (list) {
  [...choices, ...views, large].forEach((one) => one.addEventListener("change", choose));
  choose();
}
