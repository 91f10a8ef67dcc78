"use strict";
// What the page can do beyond being read: nothing here is needed to see all of it.
document.documentElement.classList.add("js");

const NEAR = 24; // pixels from the handle in which a drag moves it, and not an enlarged image

const make = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

// A handle over FP32's and the quantized image, which lie over each other, shows more of either.
// It takes the keyboard; what the mouse or a finger does comes from the image below.
const addHandle = (sample) => {
  const handle = make("input", {
    type: "range", class: "handle", min: 0, max: 100, step: 0.5, value: 50,
    "aria-label": `${sample.dataset.name}: how much of FP32's image is shown, in per cent`,
  });
  const cut = () => sample.style.setProperty("--cut", `${handle.value}%`);
  handle.addEventListener("input", cut);
  cut();
  sample.querySelector(".quantized .stage").append(handle);
  return (to) => { handle.value = 100 * to; cut(); };
};

const addTools = (sample, index, choose) => {
  const tools = make("div", { class: "tools", role: "radiogroup", "aria-label": "Enlarge" }, "Zoom");
  for (const zoom of [1, 2, 4, 8]) {
    const id = `zoom-${index}-${zoom}`;
    const choice = make("input", { type: "radio", name: `zoom-${index}`, id, value: zoom });
    choice.checked = zoom === 1;
    choice.addEventListener("change", () => choose(zoom));
    tools.append(choice, make("label", { for: id }, `\u00d7${zoom}`));
  }
  sample.querySelector(".strip").before(tools);
};

// All images of a sample are enlarged alike, about the same point; dragging or arrow keys move it.
document.querySelectorAll(".sample").forEach((sample, index) => {
  const at = { zoom: 1, x: 0.5, y: 0.5 };
  const show = () => {
    const edge = 0.5 / at.zoom;
    for (const axis of ["x", "y"]) at[axis] = Math.min(1 - edge, Math.max(edge, at[axis]));
    const [x, y] = [at.x, at.y].map((middle) => `${(0.5 - middle * at.zoom) * 100}%`);
    sample.style.setProperty("--move", `translate(${x}, ${y}) scale(${at.zoom})`);
    sample.classList.toggle("zoomed", at.zoom > 1);
  };
  addTools(sample, index, (zoom) => { at.zoom = zoom; show(); });
  const moveHandle = sample.querySelector(".quantized") === null ? null : addHandle(sample);
  for (const image of sample.querySelectorAll("img")) image.draggable = false;
  for (const stage of sample.querySelectorAll("figure:not(.quantized) .stage")) {
    const paired = moveHandle !== null && stage.parentElement.classList.contains("reference");
    let drag = null;
    const place = (event) => (event.clientX - stage.getBoundingClientRect().left) / stage.clientWidth;
    stage.addEventListener("pointerdown", (event) => {
      const handle = sample.querySelector(".handle");
      const off = paired ? Math.abs(place(event) - handle.value / 100) * stage.clientWidth : NEAR;
      if (paired && (at.zoom === 1 || off < NEAR)) drag = (now) => moveHandle(place(now));
      else if (at.zoom > 1) {
        let from = event;
        drag = (now) => {
          at.x -= (now.clientX - from.clientX) / (stage.clientWidth * at.zoom);
          at.y -= (now.clientY - from.clientY) / (stage.clientHeight * at.zoom);
          from = now;
          show();
        };
      }
      if (drag === null) return;
      drag(event);
      stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", (event) => { if (drag !== null) drag(event); });
    for (const end of ["pointerup", "pointercancel"])
      stage.addEventListener(end, () => { drag = null; });
    stage.tabIndex = paired ? -1 : 0;
    stage.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      const step = steps[event.key];
      if (step === undefined || at.zoom === 1) return;
      event.preventDefault();
      at.x += (step[0] * 0.1) / at.zoom;
      at.y += (step[1] * 0.1) / at.zoom;
      show();
    });
  }
});

// A text and a choice by column hide the rows that do not have them; rows may stand for several.
document.querySelectorAll("table[data-filters]").forEach((table) => {
  const rows = [...table.tBodies[0].rows];
  const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const columns = table.dataset.filters.split("|").map((name) => heads.indexOf(name));
  const worth = (some) => some.reduce((sum, row) => sum + Number(row.dataset.count ?? 1), 0);
  const value = (row, column) => row.cells[column].textContent.trim();
  const words = (row) => `${row.textContent} ${row.dataset.words ?? ""}`.toLowerCase();
  const text = make("input", { type: "search", placeholder: "Filter", "aria-label": "Filter by text" });
  const choices = columns.map((column) => {
    const choice = make("select", { "aria-label": heads[column] });
    choice.append(make("option", { value: "" }, `${heads[column]}: all`));
    for (const each of [...new Set(rows.map((row) => value(row, column)))].sort()) {
      const count = worth(rows.filter((row) => value(row, column) === each));
      const option = make("option", {}, `${each || "none"} (${count})`);
      option.value = `=${each}`;
      choice.append(option);
    }
    return choice;
  });
  const shown = make("output", { "aria-live": "polite" });
  const apply = () => {
    const asked = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows)
      row.hidden = !(
        asked.every((word) => words(row).includes(word)) &&
        choices.every((choice, k) => !choice.value || choice.value === `=${value(row, columns[k])}`)
      );
    const left = worth(rows.filter((row) => !row.hidden));
    shown.textContent = `${left} of ${worth(rows)} ${table.dataset.noun}`;
  };
  for (const control of [text, ...choices]) control.addEventListener("input", apply);
  apply();
  table.parentElement.before(make("div", { class: "tools filter" }, text, ...choices, shown));
});
