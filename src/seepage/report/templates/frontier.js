"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  document.documentElement.classList.add("js");

  const up = one("#up"), right = one("#right"), leads = one("#leads");
  const draw = () => all(".plot").forEach((plot) => {
    plot.hidden = plot.dataset.up !== up.value || plot.dataset.right !== right.value;
  });
  const thin = () => {
    all(".beaten").forEach((point) => point.toggleAttribute("hidden", leads.checked));
    all("#table tbody tr:not(.lead)").forEach((row) => { row.hidden = leads.checked; });
  };
  if (up) {
    up.addEventListener("change", draw);
    right.addEventListener("change", draw);
    leads.addEventListener("change", thin);
    draw();  // a browser that goes back remembers what was chosen
    thin();
  }

  const choose = (number, scroll) => {
    all(".chosen").forEach((item) => item.classList.remove("chosen"));
    all(`[data-point="${number}"]`).forEach((item) => item.classList.add("chosen"));
    if (scroll) one(`tr[data-point="${number}"]`).scrollIntoView({ block: "nearest" });
  };
  all(".point").forEach((point) => point.addEventListener("click", () => choose(point.dataset.point, true)));
  all("#table tbody tr").forEach((row) => row.addEventListener("mouseenter", () => choose(row.dataset.point, false)));

  const body = one("#table tbody"), heads = all("#table thead th");
  heads.forEach((head, column) => one("#table") && head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => {
      const cell = row.children[column];
      return cell.dataset.sort === undefined ? null : Number(cell.dataset.sort);
    };
    const by = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null && y === null) return a.children[column].textContent.localeCompare(b.children[column].textContent);
      if (x === null || y === null) return x === null ? 1 : -1;
      return x - y;
    };
    const sorted = all("tr", body).sort((a, b) => (down ? by(b, a) : by(a, b)));
    body.append(...sorted);
  }));
})();
