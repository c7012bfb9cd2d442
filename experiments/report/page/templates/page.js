"use strict";
(() => {
  const $ = (id) => document.getElementById(id);

  /** An element with attributes and children. Text is set as text, never as HTML. */
  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === true) made.setAttribute(key, "");
      else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  // Dark mode: that of the system, until the reader chooses.
  function themeButton() {
    const button = $("theme"), root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
    const stored = (() => { try { return localStorage.getItem("theme"); } catch { return null; } })();
    if (stored === "dark" || stored === "light") root.dataset.theme = stored;
    const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
    const show = () => button.setAttribute("aria-pressed", String(isDark()));
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try { localStorage.setItem("theme", root.dataset.theme); } catch { /* without storage the choice lasts until the page closes */ }
      show();
    });
    system.addEventListener("change", show);
    button.hidden = false;
    show();
  }

  // Links to sections scroll without replacing the state in the URL's hash.
  function sectionLinks() {
    for (const link of document.querySelectorAll('nav a[href^="#"], a.skip')) {
      link.addEventListener("click", (event) => {
        const section = $(link.getAttribute("href").slice(1));
        event.preventDefault();
        section.scrollIntoView();
        section.setAttribute("tabindex", "-1");
        section.focus({ preventScroll: true });
      });
    }
  }

  themeButton();
  sectionLinks();
  if (!$("data")) return;

  const { kinds, train } = JSON.parse($("data").textContent);
  const VIEWS = { query: "a query", image: "a training image" };
  const TOPS = [8, 16], MOST_PICKS = 400, MOST_SERVED = 24;
  const SIDES = [["proponents", "up", "Proponents", "largest scores"], ["opponents", "down", "Opponents", "smallest scores"]];

  // ---------------------------------------------------------------- state

  let state;

  /** The state that a hash describes; whatever it lacks, or has wrong, is the default. */
  function parsed(hash) {
    const given = new URLSearchParams(hash.replace(/^#/, ""));
    const kind = Math.max(0, kinds.findIndex((one) => one.name === given.get("kind")));
    const { queries, estimators } = kinds[kind];
    const query = Math.max(0, queries.findIndex((one) => String(one.id) === given.get("query")));
    const labels = estimators.map((one) => one.label);
    const hide = new Set(given.getAll("hide").filter((label) => labels.includes(label)));
    const image = train.findIndex((one) => String(one.id) === given.get("image"));
    return {
      view: given.get("view") in VIEWS ? given.get("view") : "query", kind, query,
      image: image >= 0 ? image : served(kind)[0], top: Number(given.get("top")) === TOPS[1] ? TOPS[1] : TOPS[0],
      hide: hide.size < labels.length ? hide : new Set(),
    };
  }

  function written({ view, kind, query, image, top, hide }) {
    const hash = new URLSearchParams();
    hash.set("view", view);
    if (kinds.length > 1) hash.set("kind", kinds[kind].name);
    if (view === "query") hash.set("query", kinds[kind].queries[query].id);
    else hash.set("image", train[image].id);
    if (top !== TOPS[0]) hash.set("top", top);
    for (const label of hide) hash.append("hide", label);
    return `#${hash}`;
  }

  /** Change the state. The browser's history gets an entry for another view or kind, and not for every query passed on the way. */
  function change(changes) {
    const next = { ...state, ...changes };
    if (next.kind !== state.kind) Object.assign(next, { query: changes.query ?? 0, hide: new Set() });
    const pushed = next.view !== state.view || next.kind !== state.kind;
    history[pushed ? "pushState" : "replaceState"](null, "", written(next));
    state = next;
    draw();
  }

  // ---------------------------------------------------------------- what serves what

  /** For each training image, the places in lists of this kind: estimator, side, query, rank and score. */
  const servedBy = kinds.map((kind) => {
    const found = train.map(() => []);
    kind.estimators.forEach((estimator, e) => {
      for (const [side, values] of SIDES) {
        estimator[side].forEach((images, query) => images.forEach((image, rank) => {
          found[image].push({ e, side, query, rank, score: estimator[values][query][rank] });
        }));
      }
    });
    return found;
  });

  const numberServed = (kind) => servedBy[kind].map((places) => places.filter((one) => one.side === "proponents").length);

  /** Training images of this kind, those that are proponents most often first. */
  function served(kind) {
    const count = numberServed(kind);
    return train.map((_, image) => image).filter((image) => servedBy[kind][image].length)
      .sort((a, b) => count[b] - count[a] || train[a].id - train[b].id);
  }

  // ---------------------------------------------------------------- text

  const sign = (text) => text.replace("-", "−");
  function score(value) {
    const size = Math.abs(value);
    const places = size >= 100 ? 0 : size >= 10 ? 1 : 2;
    const digits = value === 0 || (size >= 0.01 && size < 1000) ? value.toFixed(places) : value.toExponential(1);
    return sign(value > 0 ? `+${digits}` : digits);
  }
  const caption = (image) => (image.name && !image.name.endsWith(`/${image.id}`) ? image.name.split("/").pop() : `#${image.id}`);
  const full = (image) => [`#${image.id}`, image.name, image.label === undefined ? null : `label ${image.label}`].filter(Boolean).join(", ");
  const counted = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
  const shownOf = (kind) => kind.estimators.filter((one) => !state.hide.has(one.label));

  // ---------------------------------------------------------------- controls

  function segments(id, name, options, chosen, choose) {
    const box = $(id);
    box.parentElement.hidden = options.length < 2;
    box.replaceChildren(...options.map(([value, text]) => {
      const input = element("input", { type: "radio", name, value });
      input.checked = value === chosen;
      input.addEventListener("change", () => {
        choose(value);
        box.querySelector("input:checked").focus();
      });
      return element("label", {}, input, text);
    }));
  }

  function controls() {
    const kind = kinds[state.kind];
    segments("views", "view", Object.entries(VIEWS), state.view, (view) => change({ view }));
    segments("kinds", "kind", kinds.map((one, k) => [k, one.name]), state.kind, (k) => change({ kind: k }));
    const deepest = Math.max(...kind.estimators.map((one) => one.proponents[0].length));
    segments("tops", "top", state.view === "query" && deepest > TOPS[0] ? TOPS.map((top) => [top, String(top)]) : [], state.top, (top) => change({ top }));
    $("filter").hidden = kind.estimators.length < 2;
    $("filter").querySelector("summary").textContent = `Estimators: ${shownOf(kind).length} of ${kind.estimators.length}`;
    if ($("filter").contains(document.activeElement) && document.activeElement.type === "checkbox") return;
    $("estimators").replaceChildren(...kind.estimators.map(({ label }) => {
      const input = element("input", { type: "checkbox" });
      input.checked = !state.hide.has(label);
      input.addEventListener("change", () => {
        const hide = new Set(state.hide);
        if (input.checked) hide.delete(label);
        else hide.add(label);
        if (hide.size === kind.estimators.length) input.checked = true;
        else change({ hide });
      });
      return element("label", {}, input, ` ${label}`);
    }));
  }

  // ---------------------------------------------------------------- picker

  const picked = () => (state.view === "query" ? state.query : state.image);
  const pick = (which) => change(state.view === "query" ? { query: which } : { image: which });
  let drawnPicker;

  function candidates() {
    const wanted = $("find").value.trim().toLowerCase().replace(/^#/, "");
    const all = state.view === "query" ? kinds[state.kind].queries : train;
    const order = state.view === "query" ? all.map((_, place) => place) : served(state.kind);
    if (!wanted) return order;
    const exact = order.filter((place) => String(all[place].id) === wanted);
    const others = order.filter((place) => full(all[place]).toLowerCase().includes(wanted) && !exact.includes(place));
    return [...exact, ...others];
  }

  function picker() {
    const all = state.view === "query" ? kinds[state.kind].queries : train;
    const found = candidates(), box = $("picker"), key = JSON.stringify([state.view, state.kind, $("find").value]);
    $("find-label").textContent = `Find ${VIEWS[state.view]}: id, name or label`;
    if (drawnPicker !== key) {
      drawnPicker = key;
      const count = state.view === "image" ? numberServed(state.kind) : null;
      box.setAttribute("aria-label", state.view === "query" ? "Queries" : "Training images, those that are proponents most often first");
      box.replaceChildren(...found.slice(0, MOST_PICKS).map((place) => {
        const image = all[place], text = count ? `${full(image)}: a proponent ${counted(count[place], "time")}` : full(image);
        return element("button", { type: "button", class: "pick", role: "option", "data-place": place, "aria-label": text, title: text },
          element("img", { class: "pixels", src: image.image, alt: "" }));
      }));
      const kind = kinds[state.kind];
      const missing = state.view === "query" ? kind.count - kind.queries.length : 0;
      $("picker-note").textContent = [
        state.view === "query" ? counted(found.length, "query", "queries") : `${counted(found.length, "image")} listed for a query`,
        found.length > MOST_PICKS ? `the first ${MOST_PICKS} are shown` : null,
        missing > 0 ? `${counted(missing, "more query", "more queries")} only in the files of scores` : null,
      ].filter(Boolean).join("; ");
    }
    const options = [...box.children];
    let current = options.find((option) => Number(option.dataset.place) === picked());
    for (const option of options) {
      option.setAttribute("aria-selected", String(option === current));
      option.tabIndex = option === (current || options[0]) ? 0 : -1;
    }
    if (current) reveal(box, current);
  }

  /** Scroll the box, and nothing else, so that the option can be seen. */
  function reveal(box, option) {
    const inside = option.getBoundingClientRect(), outside = box.getBoundingClientRect();
    if (inside.top < outside.top) box.scrollTop -= outside.top - inside.top + 4;
    if (inside.bottom > outside.bottom) box.scrollTop += inside.bottom - outside.bottom + 4;
  }

  function step(by) {
    const order = candidates(), place = order.indexOf(picked());
    const next = order[place < 0 ? 0 : Math.min(order.length - 1, Math.max(0, place + by))];
    if (next !== undefined && next !== picked()) pick(next);
  }

  function pickerKeys(event) {
    const options = [...$("picker").children];
    if (!options.length || event.altKey || event.ctrlKey || event.metaKey) return;
    const columns = Math.max(1, options.filter((option) => option.offsetTop === options[0].offsetTop).length);
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    step(steps[event.key]);
    $("picker").querySelector('[aria-selected="true"]')?.focus({ preventScroll: true });
  }

  // ---------------------------------------------------------------- panel

  function thumb(image, lines, amount, label, act, attributes = {}) {
    const made = element("button", { type: "button", class: "thumb", "aria-label": label, title: label, ...attributes },
      element("img", { class: "pixels", src: image.image, alt: "" }),
      ...(amount === null ? [] : [element("span", { class: "amount" }, element("i", { style: `width:${Math.round(100 * amount)}%` }))]),
      ...lines.map(([kind, text]) => element("span", { class: kind }, text)));
    made.addEventListener("click", act);
    return made;
  }

  function subject(image, title, lines) {
    const all = candidates(), place = all.indexOf(picked());
    const move = (text, by, off) => {
      const button = element("button", { type: "button", class: "quiet", disabled: off }, text);
      button.addEventListener("click", () => {
        step(by);
        const again = [...document.querySelectorAll(".steps button")][by < 0 ? 0 : 1];
        (again.disabled ? document.querySelector(".steps button:not(:disabled)") : again)?.focus();
      });
      return button;
    };
    return element("div", { class: "subject" },
      element("img", { class: "pixels", src: image.image, alt: `${title}, ${full(image)}` }),
      element("div", {},
        element("h3", { id: "subject-title" }, title),
        ...lines.filter(Boolean).map((line) => element("p", {}, line)),
        element("div", { class: "steps" },
          move("← Previous", -1, place <= 0), move("Next →", 1, place === all.length - 1),
          image.file ? element("a", { href: image.file, class: "note" }, "image file") : null)));
  }

  /** Whether even the first score of a side has the other side's sign. */
  const none = (side, scores) => (side === "proponents" ? scores[0] <= 0 : scores[0] >= 0);

  const described = (image) => [image.name && image.name !== String(image.id) ? image.name : null, image.label === undefined ? null : `label ${image.label}`].filter(Boolean).join(" · ");

  function queryPanel() {
    const kind = kinds[state.kind], query = kind.queries[state.query], rows = shownOf(kind);
    const title = `Query #${query.id}`;
    return [subject(query, title, [described(query)]), ...rows.map((estimator) => {
      const largest = Math.max(...SIDES.flatMap(([, values]) => estimator[values][state.query].map(Math.abs)), Number.MIN_VALUE);
      const general = new Set(estimator.general);
      return element("section", { class: "estimator", "aria-label": estimator.label },
        element("h4", {}, estimator.label),
        estimator.up_noise ? element("p", { class: "note" }, "Faded: a score within the noise of the draws (95 %).") : null,
        element("div", { class: "sides" }, ...SIDES.map(([side, values, name, which]) => element("div", {},
          element("h5", {}, element("b", { class: values }, name), none(side, estimator[values][state.query]) ? ` · none; ${which}` : ` · ${which} first`),
          element("ol", { class: "strip-of-images" }, ...estimator[side][state.query].slice(0, state.top).map((place, rank) => {
            const image = train[place], value = estimator[values][state.query][rank];
            const noisy = estimator[`${values}_noise`]?.[state.query][rank];
            const label = `Training image ${full(image)}, score ${score(value)}${noisy ? ", within the noise of the draws" : ""}, ${side} rank ${rank + 1}${general.has(place) ? ", generally influential" : ""}. Show the queries it serves`;
            const made = thumb(image, [[`score ${value < 0 ? "down" : "up"}`, score(value)], ["caption", caption(image)]], Math.abs(value) / largest, label,
              () => goTo({ view: "image", image: place }), { "data-train": place });
            made.querySelector(".amount").classList.add(value < 0 ? "down" : "up");
            if (noisy) made.classList.add("noisy");
            if (general.has(place)) made.append(element("span", { class: "mark", "aria-hidden": "true" }));
            return element("li", {}, made);
          }))))));
    })];
  }

  function imagePanel() {
    const kind = kinds[state.kind], image = train[state.image], places = servedBy[state.kind][state.image];
    const title = `Training image #${image.id}`;
    const depth = Math.max(...kind.estimators.map((one) => one.proponents[0].length));
    const lines = [described(image), `Below: the ${kind.name} queries that have it among their ${depth} largest or ${depth} smallest scores.`];
    return [subject(image, title, lines), ...shownOf(kind).map((estimator) => {
      const e = kind.estimators.indexOf(estimator);
      return element("section", { class: "estimator", "aria-label": estimator.label },
        element("h4", {}, estimator.label),
        element("div", { class: "sides" }, ...SIDES.map(([side, values, name]) => {
          const found = places.filter((one) => one.e === e && one.side === side).sort((a, b) => a.rank - b.rank || Math.abs(b.score) - Math.abs(a.score));
          const more = found.length - MOST_SERVED;
          return element("div", {},
            element("h5", {}, element("b", { class: values }, name.replace(/s$/, "")), ` of ${counted(found.length, "query", "queries")}`),
            found.length ? element("ol", { class: "strip-of-images" }, ...found.slice(0, MOST_SERVED).map((one) => {
              const query = kind.queries[one.query];
              const label = `Query ${full(query)}, score ${score(one.score)}, ${side} rank ${one.rank + 1}. Show its training images`;
              return element("li", {}, thumb(query, [[`score ${one.score < 0 ? "down" : "up"}`, score(one.score)], ["caption", caption(query)], ["caption", `rank ${one.rank + 1}`]], null, label,
                () => goTo({ view: "query", query: one.query })));
            })) : element("p", {}, "none"),
            more > 0 ? element("p", {}, `and ${counted(more, "more query", "more queries")}`) : null);
        })));
    })];
  }

  /** Change the view, and move the focus to what it shows. */
  function goTo(changes) {
    $("find").value = "";
    change(changes);
    focusSubject();
  }

  function focusSubject() {
    const title = $("subject-title");
    title.tabIndex = -1;
    title.focus({ preventScroll: true });
    if (title.getBoundingClientRect().top < 60 || title.getBoundingClientRect().bottom > innerHeight) $("panel").scrollIntoView();
  }

  // ---------------------------------------------------------------- everything

  function draw() {
    controls();
    picker();
    $("panel").replaceChildren(...(state.view === "query" ? queryPanel() : imagePanel()));
    $("legend").hidden = state.view !== "query" || !$("panel").querySelector(".mark");
    const order = candidates();
    const place = order.indexOf(picked()) + 1;
    $("status").textContent = `${$("subject-title").textContent}${place ? `, ${place} of ${order.length}` : ""}`;
  }

  function fromHash() {
    // A hash without "=" is the name of a section.
    state = parsed(location.hash.includes("=") ? location.hash : "");
    draw();
  }

  function highlight(event) {
    const place = event.target.closest?.("[data-train]")?.dataset.train;
    for (const other of document.querySelectorAll(".thumb[data-train]")) {
      other.classList.toggle("same", place !== undefined && other.dataset.train === place && event.type !== "pointerout" && event.type !== "focusout");
    }
  }

  $("find").addEventListener("input", () => picker());
  $("find").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && candidates().length) pick(candidates()[0]);
  });
  $("picker").addEventListener("click", (event) => {
    const option = event.target.closest(".pick");
    if (option) pick(Number(option.dataset.place));
  });
  $("picker").addEventListener("keydown", pickerKeys);
  document.addEventListener("keydown", (event) => {
    if (event.target === document.body && (event.key === "ArrowLeft" || event.key === "ArrowRight") && !event.altKey && !event.ctrlKey && !event.metaKey) {
      step(event.key === "ArrowLeft" ? -1 : 1);
    }
  });
  for (const type of ["pointerover", "pointerout", "focusin", "focusout"]) $("panel").addEventListener(type, highlight);
  addEventListener("hashchange", () => {
    fromHash();
    if (location.hash.includes("=")) focusSubject();
  });
  addEventListener("popstate", fromHash);
  $("explorer").hidden = false;
  fromHash();
})();
