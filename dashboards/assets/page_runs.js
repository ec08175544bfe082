// Addresses of the trials' runs, and whether a click can open them here.

const links = JSON.parse(document.getElementById("runs").textContent);
// A viewer's frame without allow-popups, such as MLflow's, has an opaque origin; so has a file, which may open pages.
const isBoxed = self.origin === "null" && location.protocol !== "file:";

// The viewer's own origin: whoever reads this there reaches the server by it.
function viewerOrigin() {
  const around = location.ancestorOrigins?.[0];
  if (around && around !== "null") return around;
  try {
    const { origin } = new URL(document.referrer);
    return origin === "null" ? "" : origin;
  } catch {
    return "";
  }
}

function serverAddress() {
  const origin = isBoxed ? viewerOrigin() : "";
  if (!origin) return links.base.replace(/\/+$/, "");
  let path = "";
  try {
    path = new URL(links.base).pathname.replace(/\/+$/, "");
  } catch { /* no address of its own: the viewer's */ }
  return origin + path;
}

// Only addresses of the web are made links, whatever stands in the page.
function runAddress(trial) {
  const fragment = Object.hasOwn(links.runs, trial) ? links.runs[trial] : "";
  const server = serverAddress();
  return fragment && /^https?:/.test(server) ? `${server}/${fragment.replace(/^\/+/, "")}` : "";
}

function runLink(address, text) {
  return element("a", text, { href: address, target: "_blank", rel: "noopener" });
}

// Opens the run in a page of its own. Whether that was possible.
function openRun(address) {
  return !isBoxed && Boolean(window.open(address, "_blank"));
}

// The run's place in the details: a link, and where links are blocked its address to copy.
function runNote(trial, wasBlocked) {
  const note = element("p", "", { class: "run" });
  const address = runAddress(trial);
  if (!address) {
    note.textContent = "This page has no link to its run. Once the sweep is recorded in MLflow, the sweep's front.html has one.";
    return note;
  }
  note.append(runLink(address, "Open its run in MLflow"));
  if (isBoxed || wasBlocked) {
    note.append(
      element("span", isBoxed ? " – this viewer blocks links; copy the address:" : " – if nothing opens, the address is:"),
      element("code", address, { class: "address", tabindex: "0" }),
    );
  }
  return note;
}

function startRuns() {
  for (const place of document.querySelectorAll("[data-run]")) {
    const address = runAddress(place.dataset.run);
    if (address) place.replaceChildren(runLink(address, "run"));
  }
}
