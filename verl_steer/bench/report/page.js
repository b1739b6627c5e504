"use strict";
// Reads the JSON block and builds the dialogue browser. Texts become text nodes, never markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const scales = data.scales;
  const judging = scales.findIndex((s) => s.failsBelow !== null);
  const PAGE = 40;
  const by = (id) => document.getElementById(id);

  // -- what a dialogue is (the order of report/texts.py) --
  const turnOf = ([question, reply, scores, reason, strategy = "script", outcome = "ok", verdict = "ok"]) =>
    ({ question, reply, scores, reason, strategy, outcome, verdict });
  const dialogues = data.dialogues.map(
    ([run, name, group, category, kind, planned, why, pair, system, images, turns], place) =>
      ({ run, name, group, category, kind, planned, why, pair, system, images, turns: turns.map(turnOf), place }));
  const failed = (turn) => judging >= 0 && turn.scores[judging] !== null && turn.scores[judging] < scales[judging].failsBelow;
  const judged = (turn) => turn.scores[0] !== null;
  const outcomes = {
    "a failed turn": (d) => d.turns.some(failed),
    "every turn safe": (d) => d.turns.length === d.planned && d.turns.every((t) => judged(t) && !failed(t)),
    "a verdict missing": (d) => d.turns.length < d.planned || !d.turns.every(judged),
    "not played to the end": (d) => d.why !== 0 || d.turns.length < d.planned,
  };

  // -- small builders --
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const signed = (value) => (value === null || value === undefined ? "–" : String(value).replace("-", "−"));
  const shade = (value, scale) =>
    value === null || value === undefined ? "sx" : "s" + Math.round((6 * (value - scale.bottom)) / (scale.top - scale.bottom));
  const button = (label, action, className = "knob") => {
    const node = make("button", className, label);
    node.type = "button";
    node.addEventListener("click", action);
    return node;
  };

  // -- filters --
  const fields = { run: (d) => data.runs[d.run], group: (d) => d.group, kind: (d) => d.kind, category: (d) => d.category };
  const fill = (id, values) => {
    const select = by(id);
    select.append(new Option("all", ""));
    values.forEach((value) => select.append(new Option(value === "" ? "(none)" : value, "=" + value)));
    select.addEventListener("change", refresh);
  };
  const natural = new Intl.Collator("en", { numeric: true }).compare;
  Object.entries(fields).forEach(([id, of]) => fill(id, [...new Set(dialogues.map(of))].sort(natural)));
  fill("outcome", Object.keys(outcomes));
  by("run-label").hidden = data.runs.length < 2;
  const haystacks = new Array(dialogues.length);
  const haystack = (d) => (haystacks[d.place] ??= [d.name, d.category, d.pair,
    ...d.turns.flatMap((t) => [data.texts[t.question], data.texts[t.reply], data.texts[t.reason]])].join("\n").toLowerCase());

  let found = [], shown = 0, open = null, waiting = 0;
  function refresh() {
    const words = by("search").value.trim().toLowerCase();
    const wanted = Object.entries(fields).filter(([id]) => by(id).value).map(([id, of]) => [of, by(id).value.slice(1)]);
    const outcome = outcomes[by("outcome").value.slice(1)];
    found = dialogues.filter((d) =>
      wanted.every(([of, value]) => of(d) === value) && (!outcome || outcome(d)) && (!words || haystack(d).includes(words)));
    by("list").replaceChildren();
    shown = 0;
    grow();
    by("count").textContent = `${found.length.toLocaleString("en")} of ${dialogues.length.toLocaleString("en")} dialogues`;
  }
  function grow() {
    by("list").append(...found.slice(shown, shown + PAGE).map(entry));
    shown = Math.min(found.length, shown + PAGE);
    by("more").hidden = shown >= found.length;
    by("more").textContent = `Show more (${(found.length - shown).toLocaleString("en")} left)`;
  }
  const about = (d) => [data.runs.length > 1 ? data.runs[d.run] : "", d.group, d.kind.replace("_", " "), d.category, `${d.planned} turns`]
    .filter(Boolean).join(" · ");
  function entry(d) {
    const item = make("li"), pick = button("", () => read(d), "");
    pick.dataset.place = d.place;
    pick.setAttribute("aria-current", String(open === d));
    const strip = make("span", "strip");
    for (let t = 0; t < d.planned; t++) {
      const value = d.turns[t] ? d.turns[t].scores[0] : null;
      const mark = make("i", shade(value, scales[0]), signed(value));
      mark.title = `turn ${t + 1}: ${value === null ? "no verdict" : `${scales[0].label} ${signed(value)}`}`;
      strip.append(mark);
    }
    pick.append(make("span", "name", d.name), make("span", "about", about(d)), strip);
    item.append(pick);
    return item;
  }

  // -- one dialogue --
  const unveil = by("unveil");
  const harmful = (d) => d.kind !== "benign";
  // Puts a text, or a button that puts it.
  function put(node, text, veil) {
    if (!veil || data.redacted || (unveil && unveil.checked)) { node.append(...marked(text)); return; }
    node.append(button(veil, () => node.replaceChildren(...marked(text)), "veil"));
  }
  function marked(text) {
    const words = by("search").value.trim().toLowerCase(), parts = [];
    const low = text.toLowerCase();
    if (!words || low.length !== text.length) return [document.createTextNode(text)];
    let from = 0;
    for (let at = low.indexOf(words); at >= 0; at = low.indexOf(words, from)) {
      parts.push(document.createTextNode(text.slice(from, at)), make("mark", "", text.slice(at, at + words.length)));
      from = at + words.length;
    }
    return [...parts, document.createTextNode(text.slice(from))];
  }
  function pictures(d, t) {
    const box = make("div", "shown");
    for (const place of d.images[t] || []) {
      const [source, address] = data.pictures[place] || [];
      if (!source) { box.append(make("span", "quiet", data.redacted ? "[picture redacted]" : "[picture not stored with this run]")); continue; }
      const image = make("img"), link = make("a");
      image.alt = `picture of turn ${t + 1}`;
      image.src = source;
      link.href = address;
      link.target = "_blank";
      link.rel = "noopener";
      link.title = "open the picture's file";
      if (!harmful(d) || (unveil && unveil.checked)) { link.append(image); box.append(link); continue; }
      const veil = button("", () => { link.append(image); veil.replaceWith(link); }, "");
      veil.setAttribute("aria-label", "Show picture");
      veil.append(image);
      box.append(veil);
    }
    return box.childNodes.length ? [box] : [];
  }
  function turn(d, t) {
    const it = d.turns[t], box = make("section", "turn"), head = make("h4");
    head.append(make("span", "", `Turn ${t + 1}`));
    scales.forEach((scale, n) => {
      if (it.scores[n] !== null) head.append(make("span", "chip " + shade(it.scores[n], scale), `${scale.label} ${signed(it.scores[n])}`));
    });
    if (it.scores[0] === null) head.append(make("span", "chip sx", `no verdict: ${it.verdict}`));
    if (it.strategy !== "script") head.append(make("span", "chip note", it.strategy));
    if (it.outcome !== "ok") head.append(make("span", "chip note", `model: ${it.outcome}`));
    const asked = make("div", "said asked"), hidden = failed(it) || (!judged(it) && harmful(d));
    put(asked, data.texts[it.question], harmful(d) && "Question of a harmful script: show");
    const replied = make("div", "said replied" + (failed(it) ? " bad" : judged(it) ? " good" : ""));
    const label = failed(it) ? `Reply that failed (${signed(it.scores[judging])}): show` : "Reply without a verdict: show";
    const text = data.texts[it.reply];
    if (text === "") replied.append(make("span", "quiet", "(empty reply)"));
    else put(replied, text, hidden && label);
    box.append(head, ...pictures(d, t), asked, replied);
    if (it.reason) {
      const reason = make("p", "reason");
      reason.append(make("b", "", "Judge: "));
      put(reason.appendChild(make("span", "inline")), data.texts[it.reason], hidden && "reason of a veiled reply: show");
      box.append(reason);
    }
    return box;
  }
  function read(d, keep) {
    open = d;
    const detail = by("detail"), bar = make("div", "bar"), at = found.indexOf(d);
    bar.append(button("Close", close, "knob close"));
    if (at > 0) bar.append(button("← Previous", () => read(found[at - 1])));
    if (at >= 0 && at + 1 < found.length) bar.append(button("Next →", () => read(found[at + 1])));
    const twin = d.pair && dialogues.find((o) => o !== d && o.pair === d.pair && o.run === d.run);
    if (twin) bar.append(button(`Twin: ${twin.kind.replace("_", " ")}`, () => read(twin)));
    detail.replaceChildren(bar, make("h3", "", d.name), make("p", "about", about(d)));
    if (d.why) detail.append(make("p", "why", data.texts[d.why]));
    if (d.system) {
      const fold = make("details"), words = make("div", "said system");
      words.textContent = data.texts[d.system];
      fold.append(make("summary", "quiet", "System prompt"), words);
      detail.append(fold);
    }
    d.turns.forEach((_, t) => detail.append(turn(d, t)));
    if (d.turns.length < d.planned) detail.append(make("p", "quiet", `${d.planned - d.turns.length} planned turns were not played.`));
    detail.querySelectorAll(".veil, .shown button").length && bar.append(button("Show this dialogue's texts", (event) => {
      detail.querySelectorAll(".veil, .shown button").forEach((veil) => veil.click());
      event.target.remove();
    }));
    by("list").querySelectorAll("button").forEach((b) => b.setAttribute("aria-current", String(Number(b.dataset.place) === d.place)));
    document.body.classList.add("reading");
    detail.scrollTop = 0;
    if (!keep) {
      history.replaceState(null, "", address(d));
      detail.focus({ preventScroll: true });
    }
  }
  function close() {
    document.body.classList.remove("reading");
    history.replaceState(null, "", "#dialogues");
    const pick = open && by("list").querySelector(`button[data-place="${open.place}"]`);
    if (pick) pick.focus({ preventScroll: true });
  }
  // Rollouts of one seed share their name: then the place tells them apart.
  function address(d) {
    const alone = dialogues.filter((o) => o.run === d.run && o.name === d.name).length === 1;
    return `#d=${d.run}/${encodeURIComponent(d.name)}${alone ? "" : `/${d.place}`}`;
  }
  function follow() {
    const [, run, name, place] = /^#d=(\d+)\/([^/]*)(?:\/(\d+))?$/.exec(location.hash) || [];
    const d = run !== undefined && dialogues.find((o) => o.run === Number(run) && encodeURIComponent(o.name) === name
      && (place === undefined || o.place === Number(place)));
    if (d) { read(d, true); by("dialogues").scrollIntoView(); }
  }

  by("search").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 120); });
  by("more").addEventListener("click", grow);
  if (unveil) unveil.addEventListener("change", () => { if (open) read(open, true); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });
  window.addEventListener("hashchange", follow);
  refresh();
  if (found.length && matchMedia("(min-width: 901px)").matches) { read(found[0], true); document.body.classList.remove("reading"); }
  follow();
})();
