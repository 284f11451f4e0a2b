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

const list = document.querySelector(".samples");
const choices = [...document.querySelectorAll("input[name=model]")];
const choose = () => {
  const chosen = (choices.find((one) => one.checked) ?? { value: "0" }).value;
  const ranked = [];
  for (const sample of list.children) {
    let rank = Infinity;
    for (const shot of sample.querySelectorAll("[data-model]")) {
      shot.hidden = shot.dataset.model !== chosen;
      if (!shot.hidden) rank = Number(shot.dataset.rank);
    }
    sample.hidden = rank === Infinity;
    ranked.push([rank, sample]);
  }
  ranked.sort((a, b) => a[0] - b[0]);
  list.append(...ranked.map((pair) => pair[1]));
};
if (list) {
  choices.forEach((one) => one.addEventListener("change", choose));
  choose();
}
