// What the viewer adds to the script of the report: search while typing, keys, and news of a run
// that trains. Every page works without it.
"use strict";

const WAIT_MS = 60, NEWS_MS = 4000;
const main = document.getElementById("main");

// The answer to a search replaces the list; the address follows, so that it can be shared.
const filters = document.getElementById("filters");
if (filters) {
  let timer, running;
  const address = () => {
    const fields = [...new FormData(filters)].filter(([name, value]) => value && !(name === "order" && value === "newest"));
    const query = new URLSearchParams(fields).toString();
    return location.pathname + (query ? "?" + query : "");
  };
  const search = async () => {
    running?.abort();
    running = new AbortController();
    const asked = address();
    try {
      const answer = await fetch(asked, { signal: running.signal });
      if (!answer.ok) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.getElementById("results").replaceWith(page.getElementById("results"));
      history.replaceState(null, "", asked);
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    }
  };
  filters.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(search, WAIT_MS); });
  filters.addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(timer); search(); });
}

// Where there is room, the filters are open.
const fields = document.querySelector(".more-filters");
if (fields && matchMedia("(min-width: 801px)").matches) fields.open = true;

const sides = document.getElementById("sides");
sides?.addEventListener("change", () => sides.submit());

// Keys.
const dialog = document.getElementById("keys");
document.getElementById("help").onclick = () => dialog.showModal();

function walk(by) {
  const rows = [...document.querySelectorAll("[data-keys] a")];
  const at = rows.indexOf(document.activeElement);
  if (!rows.length) return false;
  rows[Math.min(Math.max(at < 0 ? (by > 0 ? 0 : rows.length - 1) : at + by, 0), rows.length - 1)].focus();
  return true;
}

function follow(rel) {
  const link = document.querySelector(`a[rel="${rel}"]`);
  if (link) location.href = link.href;
  return Boolean(link);
}

const KEYS = {
  "/": () => {
    const search = document.getElementById("search");
    search?.focus();
    search?.select();
    return Boolean(search);
  },
  "j": () => walk(1) || follow("next"),
  "k": () => walk(-1) || follow("prev"),
  "ArrowRight": () => follow("next"),
  "ArrowLeft": () => follow("prev"),
  "u": () => follow("up"),
  "?": () => { dialog.showModal(); return true; },
};

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, dialog");
  if (event.key === "Escape" && typing) typing.blur();
  // Arrows scroll what is wider than the screen.
  const scrolls = event.key.startsWith("Arrow") && event.target.closest(".branches, .scroll, pre");
  if (typing || scrolls || event.ctrlKey || event.metaKey || event.altKey) return;
  if (KEYS[event.key]?.()) event.preventDefault();
});

// The probability of a token, where no pointer can rest on it.
const tip = document.getElementById("tip");
document.addEventListener("click", (event) => {
  const token = event.target.closest(".u[title]");
  tip.hidden = !token;
  if (token) {
    const box = token.getBoundingClientRect();
    tip.textContent = token.title;
    tip.style.left = Math.min(box.left + scrollX, scrollX + innerWidth - 170) + "px";
    tip.style.top = box.bottom + scrollY + 4 + "px";
  }
  for (const open of document.querySelectorAll(".switch[open]")) if (!open.contains(event.target)) open.open = false;
});

// A log is read from its end.
function toEnd(root) {
  for (const log of root.querySelectorAll("[data-tail]")) log.scrollTop = log.scrollHeight;
}
toEnd(document);

// News: the parts of the page that are marked as living are replaced when the run has gone on.
async function news() {
  if (!document.hidden) {
    try {
      const answer = await fetch(location.href, { headers: { "X-Axpo-Seen": main.dataset.version } });
      if (answer.status === 200) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        for (const part of document.querySelectorAll("[data-live]")) {
          const fresh = page.getElementById(part.id);
          if (fresh && fresh.innerHTML !== part.innerHTML && !part.contains(document.activeElement)) {
            part.replaceWith(fresh);
            enliven(fresh);
            toEnd(fresh);
          }
        }
        const now = page.getElementById("main");
        main.dataset.version = now.dataset.version;
        if (!("follow" in now.dataset)) return;
      }
    } catch (error) {
      // The viewer was ended, or will be back.
    }
  }
  setTimeout(news, NEWS_MS);
}
if ("follow" in main.dataset) setTimeout(news, NEWS_MS);
