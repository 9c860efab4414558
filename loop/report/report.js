// The page's own script: draws the figures, shows texts, and, when the page is live, takes in what is new.
// Everything that a model or a file wrote goes into the page by textContent.
"use strict";
(() => {
  const live = document.documentElement.hasAttribute("data-live");
  const main = document.getElementById("main");
  const kept = { group: 0, prompt: null, column: null, search: "" }; // what is open in the browser of completions

  const read = (id) => {
    const element = document.getElementById(id);
    return element ? JSON.parse(element.textContent) : null;
  };
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") element.className = value;
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  };

  // Figures: those in sight at once, the others when there is time, so that all are there when the page is printed

  const LEGEND_WIDTH = 160; // of one name, in pixels
  let queue = [];
  let drawing = false;
  let watcher = null;
  const draw = (panel) => {
    const place = queue.indexOf(panel);
    if (place < 0) return Promise.resolve();
    queue.splice(place, 1);
    const specification = figures[panel.dataset.figure]?.[Number(panel.dataset.panel)];
    if (!specification) return Promise.resolve();
    const options = {
      mode: "vega-lite", actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: { disableDefaultStyle: true },
      config: { legend: { columns: Math.max(1, Math.floor(panel.clientWidth / LEGEND_WIDTH)) } },
    };
    return vegaEmbed(panel, specification, options).then(
      () => panel.classList.add("drawn"),
      (error) => { panel.textContent = `This chart could not be drawn (${error.message}); its numbers are in the table below.`; },
    );
  };
  const idle = window.requestIdleCallback || ((work) => setTimeout(work, 30));
  const drawRest = () => {
    if (drawing || !queue.length) return;
    drawing = true;
    idle(() => draw(queue[0]).then(() => { drawing = false; drawRest(); }));
  };
  let figures = {};
  const drawAll = () => {
    figures = read("figures") || {};
    queue = [...main.querySelectorAll(".panel")];
    watcher?.disconnect();
    watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) { watcher.unobserve(entry.target); draw(entry.target); }
    });
    queue.forEach((panel) => watcher.observe(panel));
    setTimeout(drawRest, 200);
  };

  // The browser of completions

  const share = ([, passed, num]) => `${passed}/${num}`;
  const mark = (words) => { // "passed", or "left out: why"
    const [outcome, ...why] = words.split(": ");
    const name = make("span", { class: `mark ${outcome.split(/[ ;]/)[0]}` }, outcome.replace("no_code", "no code"));
    return why.length ? make("span", {}, name, " ", make("bdi", {}, why.join(": "))) : name;
  };
  const browse = () => {
    const where = document.getElementById("browser");
    const data = read("texts");
    if (!where || !data) return;
    where.replaceChildren();
    if (!data.groups.length) {
      where.append(make("p", { class: "dim" }, "Nothing was written yet."));
      return;
    }
    kept.group = Math.min(kept.group, data.groups.length - 1);
    const short = (column) => data.columns[column].replace("round ", "");
    const list = make("div", { class: "list", role: "group", "aria-label": "Prompts" });
    const reader = make("div", { class: "reader", "aria-live": "polite" });
    const groups = make("select", { "aria-label": "Suite", onchange: () => { kept.group = groups.selectedIndex; kept.prompt = kept.column = null; show(); } });
    data.groups.forEach((group, place) => {
      const option = make("option", {}, group.name + (group.split ? ` (${group.split})` : ""));
      option.selected = place === kept.group;
      groups.append(option);
    });
    const search = make("input", { type: "search", placeholder: "Find a prompt", "aria-label": "Find a prompt", oninput: () => { kept.search = search.value; fill(); } });
    search.value = kept.search;
    where.append(make("div", { class: "picker" }, groups, search, list), reader);

    const MOST = 300;
    const fill = () => {
      const group = data.groups[kept.group];
      const words = kept.search.toLowerCase();
      const found = group.prompts.filter((prompt) =>
        !words || prompt.name.toLowerCase().includes(words) ||
        (prompt.statement !== null && data.texts[prompt.statement].toLowerCase().includes(words)));
      list.replaceChildren();
      for (const prompt of found.slice(0, MOST)) {
        const counts = prompt.counts;
        const moved = counts.length ? (counts.length > 1 ? `${share(counts[0])} → ${share(counts.at(-1))}` : share(counts[0]))
          : `${prompt.answers.length}`;
        const button = make("button", { type: "button", onclick: () => { kept.prompt = prompt.name; kept.column = null; choose(prompt); } },
          make("bdi", { class: "name" }, prompt.name), make("span", { class: "dim" }, (prompt.answers.length ? "" : "no text · ") + moved));
        button.setAttribute("aria-pressed", String(prompt.name === kept.prompt));
        list.append(button);
      }
      if (found.length > MOST) list.append(make("p", { class: "dim" }, `${found.length - MOST} more; find them by name`));
      if (!found.length) list.append(make("p", { class: "dim" }, "No such prompt."));
    };
    const choose = (prompt) => {
      fill();
      reader.replaceChildren(make("h3", {}, make("bdi", {}, prompt.name)));
      if (prompt.difficulty) reader.append(make("p", { class: "dim" }, prompt.difficulty));
      if (prompt.statement !== null) reader.append(make("pre", { class: "text" }, data.texts[prompt.statement]));
      const answered = new Map();
      for (const answer of prompt.answers) {
        if (!answered.has(answer[0])) answered.set(answer[0], []);
        answered.get(answer[0]).push(answer);
      }
      const counted = new Map(prompt.counts.map((count) => [count[0], count]));
      const columns = [...new Set([...counted.keys(), ...answered.keys()])].sort((a, b) => a - b);
      const strip = make("div", { class: "strip", role: "group", "aria-label": "Checkpoints" });
      const pick = (column) => { kept.column = column; choose(prompt); reader.querySelector(`[data-column="${column}"]`)?.focus(); };
      const every = make("button", { type: "button", "data-column": "null", onclick: () => pick(null) }, make("b", {}, "all"), "rounds");
      every.setAttribute("aria-pressed", String(kept.column === null));
      strip.append(every);
      for (const column of columns) {
        const count = counted.get(column);
        const state = !count || !count[1] ? "none" : count[1] === count[2] ? "all" : "some";
        const button = make("button", { type: "button", class: state, "data-column": String(column), title: data.columns[column], onclick: () => pick(column) },
          make("b", {}, short(column)), count ? share(count) : "·");
        button.disabled = !answered.has(column);
        button.setAttribute("aria-pressed", String(kept.column === column));
        strip.append(button);
      }
      reader.append(strip);
      if (!prompt.answers.length) {
        reader.append(make("p", { class: "dim" }, "The page does not hold the texts of this prompt; `loopctl samples` shows them."));
        return;
      }
      if (kept.column === null) through(prompt);
      else for (const answer of answered.get(kept.column) || []) reader.append(written(prompt, data.columns[kept.column], answer, true));
    };
    const written = (prompt, label, [, sample, text, outcome, detail, tokens, ended], several) => {
      const body = make("pre", { class: "text" });
      if (prompt.prefill !== null && data.texts[prompt.prefill]) body.append(make("span", { class: "given" }, data.texts[prompt.prefill]));
      body.append(make("bdi", {}, data.texts[text]));
      const facts = `${several ? ` · sample ${sample}` : ""} · ${tokens} tokens, ended by ${ended}${detail === null ? "" : ` · ${data.texts[detail]}`}`;
      return make("div", { class: "answer" }, make("p", {}, make("strong", {}, label), " ", mark(outcome), make("span", { class: "dim" }, facts)), body);
    };
    // One sample through the rounds: neighbours that wrote the same stand together.
    const through = (prompt) => {
      const first = prompt.answers.filter((answer) => answer[1] === prompt.answers[0][1]);
      reader.append(make("p", { class: "dim" }, `Sample ${prompt.answers[0][1]} through the rounds; click on a checkpoint above for all of its samples.`));
      for (let start = 0; start < first.length;) {
        let end = start + 1;
        while (end < first.length && first[end][2] === first[start][2] && first[end][3] === first[start][3]) end += 1;
        const [from, to] = [data.columns[first[start][0]], data.columns[first[end - 1][0]]];
        reader.append(written(prompt, end - start > 1 ? `${from} to ${to.replace("round ", from === "base" ? "round " : "")}` : from, first[start], false));
        start = end;
      }
    };
    const show = () => {
      const prompts = data.groups[kept.group].prompts;
      const chosen = prompts.find((prompt) => prompt.name === kept.prompt) || prompts[0];
      if (chosen) { kept.prompt = chosen.name; choose(chosen); } else { fill(); reader.replaceChildren(); }
    };
    show();
  };

  // A link to a round opens it

  const follow = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target instanceof HTMLDetailsElement) { target.open = true; target.scrollIntoView({ block: "start" }); }
  };
  window.addEventListener("hashchange", follow);
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.('a[href^="#round-"]');
    if (link && link.hash === location.hash) follow();
  });

  // On paper the tables stand open

  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.numbers:not([open])")];
    opened.forEach((details) => { details.open = true; });
    while (queue.length) draw(queue[0]);
  });
  window.addEventListener("afterprint", () => opened.forEach((details) => { details.open = false; }));

  const begin = () => { drawAll(); browse(); };
  begin();
  follow();

  // Live: something changed, so the inside of <main> is asked for again; what is open stays open

  if (!live) return;
  const connection = document.getElementById("connection");
  let asking = false;
  let again = false;
  const renew = async () => {
    if (asking) { again = true; return; }
    asking = true;
    try {
      const answer = await fetch("body", { cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const open = [...main.querySelectorAll("details[open][id]")].map((details) => details.id);
      const heights = new Map([...main.querySelectorAll(".panel")].map((panel) => [panel.dataset.figure + panel.dataset.panel, panel.offsetHeight]));
      const focus = document.activeElement?.id;
      const [x, y] = [scrollX, scrollY];
      main.replaceChildren(...document.adoptNode(fresh.body).childNodes);
      for (const id of open) { const details = document.getElementById(id); if (details) details.open = true; }
      for (const panel of main.querySelectorAll(".panel")) {
        const height = heights.get(panel.dataset.figure + panel.dataset.panel);
        if (height) panel.style.minHeight = `${height}px`;
      }
      begin();
      if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
      scrollTo(x, y);
      connection.hidden = true;
    } catch {
      connection.hidden = false;
    } finally {
      asking = false;
      if (again) { again = false; renew(); }
    }
  };
  const events = new EventSource("events");
  events.onmessage = renew;
  events.onopen = () => { if (!connection.hidden) renew(); };
  events.onerror = () => { connection.hidden = false; };
})();
