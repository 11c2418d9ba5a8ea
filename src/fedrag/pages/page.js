(() => {
  "use strict";
  const FIRST = 20;
  const box = document.getElementById("filter");
  if (!box) return;
  document.getElementById("tools").hidden = false;
  const said = document.getElementById("found");
  const lists = [...document.querySelectorAll(".flips")].map((list) => ({
    items: [...list.children].map((item) => ({ item, text: item.textContent.toLowerCase() })),
    button: list.parentElement.querySelector("button.all"),
    all: false,
  }));
  const draw = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let seen = 0;
    for (const list of lists) {
      const matching = list.items.filter(({ text }) => words.every((word) => text.includes(word)));
      const most = list.all || words.length ? Infinity : FIRST;
      for (const { item } of list.items) item.hidden = true;
      for (const { item } of matching.slice(0, most)) item.hidden = false;
      seen += matching.length;
      list.button.hidden = matching.length <= most;
    }
    said.textContent = words.length ? `${seen} ${seen === 1 ? "question matches" : "questions match"}` : "";
  };
  for (const list of lists) {
    list.button.addEventListener("click", () => {
      list.all = true;
      draw();
      list.items[FIRST].item.querySelector("summary").focus();
    });
  }
  box.addEventListener("input", draw);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      box.value = "";
      draw();
    }
  });
  draw();
})();
