"use strict";
// The page of a submission follows its state by server-sent events; texts are set as text, never as HTML.
(function () {
  const place = document.getElementById("state");
  if (place.dataset.over === "yes") { return; }
  const of = (id) => document.getElementById(id);
  const percent = (share) => `${(100 * share).toFixed(1)}%`;
  const step = (one) => one.phase + (one.method ? `: ${one.method}` : "") + (one.total ? `, ${one.counted}` : "");
  const source = new EventSource(place.dataset.events);
  source.addEventListener("state", (event) => {
    const state = JSON.parse(event.data);
    of("words").textContent = state.words;
    of("reason").textContent = state.hidden || state.reason ? `: ${state.hidden || state.reason}` : "";
    ["position", "estimated_start", "started_at", "ended_at"].forEach((name) => { of(name).textContent = state[name] ?? "-"; });
    of("attempt").textContent = `${state.attempt} of ${state.attempts}`;
    of("steps").replaceChildren(...state.live.steps.map((one) => {
      const item = document.createElement("li");
      item.textContent = step(one);
      return item;
    }));
    of("bounds").textContent = state.live.bounds.map((one) => `Robust at ${Number(one.eps.toPrecision(4))}: between ${percent(one.low)} and ${percent(one.high)}.`).join(" ");
    of("log").textContent = state.log.join("\n");
    if (state.over) { source.close(); }
  });
}());
