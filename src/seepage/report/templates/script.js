"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (selector, within = document) => within.querySelector(selector);
  root.classList.add("js");

  // Some browsers refuse storage to a page opened from a file: the choice then lasts as long as the page.
  const remembered = () => { try { return localStorage.getItem("seepage-theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("seepage-theme", theme); } catch { /* not kept */ } };
  const themes = ["auto", "light", "dark"];
  const dress = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    one("#theme").textContent = `Theme: ${theme}`;
  };
  let theme = themes.includes(remembered()) ? remembered() : "auto";
  dress(theme);
  one("#theme").addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    dress(theme);
    remember(theme);
  });

  const press = (button) => all("button", button.parentElement)
    .forEach((other) => other.setAttribute("aria-pressed", String(other === button)));

  all(".charts").forEach((charts) => {
    const panels = all(".panel", charts);
    all("[data-panel]", charts).forEach((button) => button.addEventListener("click", () => {
      press(button);
      panels.forEach((panel, index) => { panel.hidden = index !== Number(button.dataset.panel); });
    }));
  });

  all("[data-shown]").forEach((button) => button.addEventListener("click", () => {
    press(button);
    const best = button.dataset.shown === "best";
    all(".shot").forEach((shot) => {
      shot.hidden = best ? !shot.dataset.best : shot.dataset.attack !== button.dataset.shown;
    });
    all("[data-empty]").forEach((empty) => { empty.hidden = !best; });
  }));

  const table = one("#results");
  if (table) {
    const body = one("tbody", table);
    const headers = all("thead th", table);
    const value = (row, index) => {
      const shown = one(".value:not([hidden])", row.cells[index]);
      const sort = shown ? shown.dataset.sort : "";
      if (sort === "") return null;
      return headers[index].classList.contains("num") || index === 0 ? Number(sort) : sort;
    };
    // What has no value stays last whichever way the rest is sorted.
    const compare = (a, b, sign) => {
      if (a === null || b === null) return (a === null) - (b === null);
      if (typeof a === "number") return sign * (a === b ? 0 : a < b ? -1 : 1);
      return sign * a.localeCompare(b, undefined, { numeric: true });
    };
    headers.forEach((header, index) => one("button", header).addEventListener("click", () => {
      const numeric = header.classList.contains("num");
      const now = header.getAttribute("aria-sort");
      const next = now === "none" ? (numeric ? "descending" : "ascending") : now === "ascending" ? "descending" : "ascending";
      headers.forEach((other) => other.setAttribute("aria-sort", other === header ? next : "none"));
      const rows = all("tr", body).map((row) => [value(row, index), row]);
      rows.sort((a, b) => compare(a[0], b[0], next === "ascending" ? 1 : -1));
      body.append(...rows.map((row) => row[1]));
    }));
    one("#statistic").addEventListener("change", (event) => {
      all(".value", body).forEach((item) => {
        item.hidden = item.dataset.statistic !== "" && item.dataset.statistic !== event.target.value;
      });
      headers.forEach((header) => header.setAttribute("aria-sort", "none"));
    });
    one("#filter").addEventListener("input", (event) => {
      const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
      const rows = all("tr", body);
      rows.forEach((row) => { row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word)); });
      const left = rows.filter((row) => !row.hidden).length;
      one("#matches").textContent = words.length ? `${left} of ${rows.length}` : "";
    });
  }

  const dialog = one("#zoom");
  if (dialog) {
    const [original, recovered] = all("img", dialog);
    const caption = all("figcaption", dialog)[1];
    let at = null;
    const visible = () => all(".shots tbody tr").map((row) => all(".shot:not([hidden]) .zoomable", row));
    const show = (button) => {
      at = button;
      const shot = button.closest(".shot");
      const row = button.closest("tr");
      const truth = one(".truth img", row);
      original.parentElement.hidden = !truth;
      if (truth) original.src = truth.src;
      recovered.src = one("img", button).src;
      caption.textContent = one("figcaption", shot).innerText.replace(/\s*\n\s*/g, " · ");
      one("#zoom-title").textContent = `${one(".id", row).textContent}, cut at ${button.closest("td").dataset.layer}`;
      if (!dialog.open) dialog.showModal();
    };
    all(".zoomable").forEach((button) => button.addEventListener("click", () => show(button)));
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => { if (at) at.focus(); });
    dialog.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      const rows = visible().filter((row) => row.length);
      const y = rows.findIndex((row) => row.includes(at));
      const column = at.closest("td").cellIndex;
      const line = rows[Math.min(Math.max(y + step[0], 0), rows.length - 1)];
      if (step[0]) return show(line.find((button) => button.closest("td").cellIndex === column) || line[0]);
      show(line[Math.min(Math.max(line.indexOf(at) + step[1], 0), line.length - 1)]);
    });
  }
})();
