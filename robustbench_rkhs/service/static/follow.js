"use strict";
// The page of a submission follows its state by server-sent events; texts are set as text, never as HTML.
(function () {
  const AGAIN = 3000; // milliseconds until a lost connection is tried again
  const place = document.getElementById("state");
  if (place.dataset.over === "yes") { return; }
  const of = (id) => document.getElementById(id);
  const percent = (share) => `${(100 * share).toFixed(1)}%`;
  const step = (one) => one.phase + (one.method ? `: ${one.method}` : "") + (one.total ? `, ${one.counted}` : "");
  const lost = (is) => {
    of("lost").textContent = is ? "The connection is lost: this page tries again every few seconds." : "";
    of("lost").hidden = !is;
  };
  function show(state) {
    of("words").textContent = state.words;
    of("reason").textContent = state.hidden || state.reason ? `: ${state.hidden || state.reason}` : "";
    ["position", "estimated_start", "started_at", "ended_at"].forEach((name) => { of(name).textContent = state[name] ?? "-"; });
    document.querySelectorAll("[data-queued]").forEach((one) => { one.hidden = state.status !== "queued"; });
    of("progress").hidden = state.over && !state.live.bounds.length;
    of("attempt").textContent = `${state.attempt} of ${state.attempts}`;
    of("steps").replaceChildren(...state.live.steps.map((one) => {
      const item = document.createElement("li");
      item.textContent = step(one);
      return item;
    }));
    of("bounds").textContent = state.live.bounds.map((one) => `Robust at ${Number(one.eps.toPrecision(4))}: between ${percent(one.low)} and ${percent(one.high)}.`).join(" ");
    of("log").textContent = state.log.join("\n");
  }
  // the server knows where the site shows it
  async function showPages() {
    const answer = await fetch(location.href);
    const pages = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("pages");
    if (answer.ok && pages) { of("pages").replaceChildren(...pages.childNodes); }
  }
  function follow() {
    const source = new EventSource(place.dataset.events);
    source.addEventListener("open", () => lost(false));
    source.addEventListener("state", (event) => {
      const state = JSON.parse(event.data);
      show(state);
      if (state.over) {
        source.close();
        showPages().catch(() => {}); // the links are then on the page as it is read next
      }
    });
    source.addEventListener("error", () => {
      lost(true);
      // an answer that is no stream closes it for good; a broken one is opened again by the browser
      if (source.readyState === EventSource.CLOSED) { setTimeout(follow, AGAIN); }
    });
  }
  follow();
}());
