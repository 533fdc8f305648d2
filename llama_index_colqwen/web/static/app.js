// What the server says -> what the page shows. All texts are set as text: nothing that a file or a question holds is
// read as HTML. The address holds what is asked for, so that it can be shared, and the back button works.

const $ = (id) => document.getElementById(id);

function el(tag, properties = {}, ...children) {
  const { style, ...others } = properties;
  const made = Object.assign(document.createElement(tag), others);
  Object.assign(made.style, style);
  made.append(...children);
  return made;
}

const plural = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;
const percent = (share) => `${Math.round(100 * share)} %`;

// ---- asking the server

class Refused extends Error {
  constructor(sentence, answer) {
    super(sentence);
    this.answer = answer;
  }
}

async function ask(path, parameters = {}, options = {}) {
  const query = new URLSearchParams(parameters);
  let response;
  try {
    response = await fetch(`api/${path}?${query}`, { ...options, headers: { "X-ColQwen-UI": "1" } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server does not answer. Is `colqwen ui` still running?", {});
  }
  if (response.status === 401 && path !== "session") {
    await signIn();
    return ask(path, parameters, options);
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => ({}));
    throw new Refused(answer.error || `The server failed (${response.status}); the terminal says why.`, answer);
  }
  return response;
}

const askJson = async (...request) => (await ask(...request)).json();

let signingIn = null;

function signIn() {
  signingIn ??= new Promise((done) => {
    $("sign-in").showModal();
    $("sign-in").oncancel = (event) => event.preventDefault();
    $("sign-in-form").onsubmit = async (event) => {
      event.preventDefault();
      $("wrong").textContent = "";
      try {
        await ask("session", {}, { method: "POST", body: JSON.stringify({ token: $("token").value.trim() }) });
      } catch (error) {
        $("wrong").textContent = error.message;
        $("token").select();
        return;
      }
      $("token").value = "";
      $("sign-in").close();
      signingIn = null;
      done();
    };
  });
  return signingIn;
}

function fail(error) {
  if (error.name === "AbortError") return;
  $("error").textContent = error.message;
  if (!(error instanceof Refused)) console.error(error);
}

// ---- the address

const PAGE_OF_HITS = 12;

function wanted() {
  const given = new URLSearchParams(location.search);
  return {
    q: (given.get("q") || "").trim(),
    files: given.getAll("file"),
    most: Number(given.get("k")) || PAGE_OF_HITS,
    page: given.get("page"),
  };
}

function address({ q, files, most, page }) {
  const query = new URLSearchParams();
  if (q) query.set("q", q);
  for (const file of files) query.append("file", file);
  if (most !== PAGE_OF_HITS) query.set("k", most);
  if (page) query.set("page", page);
  return query.size ? `?${query}` : "./";
}

function go(change, { replace = false } = {}) {
  const target = address({ ...wanted(), ...change });
  // An entry of ours has one of ours before it, to which closing a page goes back.
  if (replace) history.replaceState(history.state, "", target);
  else history.pushState({ ours: true }, "", target);
  return show();
}

// ---- documents

// How many pages these files have, or all.
function pagesOf(files) {
  const some = state.documents.filter((one) => !files.length || files.includes(one.file_name));
  return some.reduce((sum, one) => sum + one.pages, 0);
}

const state = { documents: [], chat_model: null, types: [], max_upload_bytes: 0 };

async function readState() {
  Object.assign(state, await askJson("state"));
  $("choose").accept = state.types.join(",");
  showDocuments();
}

function showDocuments() {
  const { files } = wanted();
  $("documents").hidden = !state.documents.length;
  $("pages").textContent = `${state.documents.length}, ${plural(pagesOf([]), "page")}`;
  $("narrow").hidden = state.documents.length < 13;
  const held = document.activeElement?.value;
  $("files").replaceChildren(
    ...state.documents.map(({ file_name, pages }) => {
      const box = el("input", { type: "checkbox", value: file_name, checked: files.includes(file_name) });
      box.onchange = () => go({ files: [...document.querySelectorAll("#files input:checked")].map((one) => one.value) });
      const number = el("small", { textContent: pages, title: plural(pages, "page") });
      return el("li", {}, el("label", {}, box, el("span", { textContent: file_name }), number));
    }),
  );
  narrow();
  if (held && document.activeElement === document.body) {
    [...$("files").querySelectorAll("input")].find((box) => box.value === held)?.focus();
  }
}

function narrow() {
  const part = $("narrow").value.toLowerCase();
  for (const line of $("files").children) {
    line.hidden = !line.textContent.toLowerCase().includes(part);
  }
}

// ---- results

let asking = new AbortController();
let found = { key: null, hits: [] };

async function show() {
  const now = wanted();
  $("error").textContent = "";
  $("query").value = now.q;
  document.title = now.q ? `${now.q} - ColQwen` : "Pages - ColQwen";
  for (const box of $("files").querySelectorAll("input")) box.checked = now.files.includes(box.value);
  $("ask").hidden = !state.chat_model;
  const key = JSON.stringify([now.q, now.files, now.most]);
  if (key !== found.key) {
    asking.abort();
    asking = new AbortController();
    answering.abort();
    $("answer").hidden = true;
    if (now.q) await search(now, key, asking.signal).catch(fail);
    else showHits({ hits: [], more: false }, now, key);
  }
  await showPage(now).catch(fail);
}

async function search(now, key, signal) {
  $("status").textContent = "Searching ...";
  try {
    const parameters = [["q", now.q], ["k", now.most], ...now.files.map((file) => ["file", file])];
    showHits(await askJson("search", parameters, { signal }), now, key);
  } catch (error) {
    if (error.name !== "AbortError") {
      showHits({ hits: [], more: false }, { ...now, q: "" }, null);
      $("empty").hidden = true;
    }
    throw error;
  }
}

function showHits({ hits, more, seconds }, now, key) {
  found = { key, hits };
  $("hits").replaceChildren(...hits.map((hit) => card(hit, now)));
  $("more").hidden = !more;
  const all = pagesOf(now.files);
  const which = hits.length < all ? `The ${hits.length} best of ${plural(all, "page")}` : plural(hits.length, "page");
  $("status").textContent = now.q && hits.length ? `${which}, found in ${Math.round(1000 * seconds)} ms` : "";
  showEmpty(now, hits.length);
}

function card(hit, now) {
  const title = `${hit.file_name}, page ${hit.page}`;
  const link = el("a", { href: address({ ...now, page: hit.page_id }), textContent: hit.file_name });
  link.append(el("span", { className: "unseen", textContent: `, page ${hit.page}` }));
  link.onclick = (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go({ page: hit.page_id });
  };
  const picture = el("img", {
    src: `api/thumbnail?${new URLSearchParams({ page: hit.page_id, v: hit.v })}`, alt: "", loading: "lazy",
  });
  const thumb = el("div", { className: "thumb" }, picture);
  picture.onerror = () => {
    thumb.classList.add("none");
    thumb.textContent = "The picture of this page is gone.";
  };
  const bar = el("span", { className: "bar" }, el("i", { style: { width: percent(hit.score).replace(" ", "") } }));
  const score = el("span", { className: "score", title: "How well the page matches, of 100 %" }, bar, percent(hit.score));
  score.prepend(el("span", { className: "unseen", textContent: "match" }));
  return el("li", { title }, thumb, el("div", { className: "card" }, link,
    el("p", { className: "where" }, `Page ${hit.page}`, score),
    el("p", { className: "snippet" }, ...marked(hit.snippet, hit.matches))));
}

// Places count characters as Python does, and so does an array of them.
function marked(text, matches) {
  const characters = [...text];
  const parts = [];
  let at = 0;
  for (const [start, end] of matches) {
    parts.push(characters.slice(at, start).join(""), el("mark", { textContent: characters.slice(start, end).join("") }));
    at = end;
  }
  return [...parts, characters.slice(at).join("")];
}

const EXAMPLES = [
  "Which chart shows the costs over time?",
  "What are the main results?",
  "Who signed it, and when?",
];

function showEmpty(now, number) {
  const empty = $("empty");
  empty.hidden = number > 0;
  if (number > 0) return;
  if (!state.documents.length) {
    const choose = el("button", { type: "button", textContent: "Choose files", onclick: () => $("choose").click() });
    empty.replaceChildren(
      el("h2", { textContent: "Drop a PDF here" }),
      el("p", { textContent: "Nothing is indexed yet. PDFs, pictures and office documents are read page by page, on this machine; then ask about them in your own words." }),
      choose,
    );
  } else if (!now.q) {
    const examples = EXAMPLES.map((text) => {
      const button = el("button", { type: "button", className: "quiet", textContent: text });
      button.onclick = () => go({ q: text });
      return el("li", {}, button);
    });
    empty.replaceChildren(
      el("h2", { textContent: "Ask your pages" }),
      el("p", { textContent: "Ask in your own words, and the pages that answer are shown, with what matches on them. Such as:" }),
      el("ul", {}, ...examples),
    );
  } else {
    const why = now.files.length ? "The documents that are ticked have no page for it." : "There is no page for it.";
    empty.replaceChildren(el("h2", { textContent: "No page is found" }), el("p", { textContent: why }));
  }
}

// ---- one page

let opened = { key: null };

async function showPage(now) {
  const dialog = $("page");
  if (!now.page) {
    opened = { key: null };
    if (dialog.open) dialog.close();
    return;
  }
  const key = JSON.stringify([now.q, now.page]);
  if (key === opened.key) return;
  opened = { key };
  const place = found.hits.findIndex((hit) => hit.page_id === now.page);
  const hit = found.hits[place];
  $("title").textContent = hit ? `${hit.file_name}, page ${hit.page}` : "Page";
  $("asked").textContent = now.q + (hit && now.q ? ` (match ${percent(hit.score)})` : "");
  $("notes").textContent = "";
  $("chips").replaceChildren();
  $("regions").replaceChildren();
  $("tokens").hidden = $("places").hidden = true;
  $("frame").hidden = true;
  for (const [id, step] of [["previous", -1], ["next", 1]]) {
    const other = place < 0 ? undefined : found.hits[place + step];
    $(id).disabled = !other;
    $(id).onclick = () => go({ page: other.page_id }, { replace: true });
  }
  showPicture(now, "all");
  $("sheet").scrollTo(0, 0);
  if (!dialog.open) dialog.showModal();
  $("title").focus();
  let page;
  try {
    page = await askJson("page", { page: now.page, q: now.q });
  } catch (error) {
    $("notes").textContent = error.message;
    return;
  }
  if (opened.key !== key) return; // another one was opened meanwhile
  $("title").textContent = page.title;
  $("notes").textContent = page.notes.join(" ");
  if (page.tokens.length) showTokens(page.tokens, now);
  showRegions(page.regions);
}

function showPicture(now, token) {
  const picture = $("picture");
  const address = `api/picture?${new URLSearchParams({ page: now.page, q: now.q, token })}`;
  picture.hidden = false;
  picture.parentElement.querySelector(".gone")?.remove();
  picture.classList.add("waits");
  picture.onload = () => picture.classList.remove("waits");
  picture.onerror = () => {
    picture.hidden = true;
    picture.after(el("p", { className: "gone", textContent: "There is no picture of this page." }));
  };
  picture.alt = token === "none" || !now.q ? "The page" : "The page, with what matches marked on it";
  picture.src = address;
}

function showTokens(tokens, now) {
  const choices = [
    { value: "all", text: "All words", share: 1, matches: true },
    ...tokens.map((token) => ({ ...token, value: token.number })),
    { value: "none", text: "No marks", share: 0, matches: true },
  ];
  $("tokens").hidden = false;
  $("chips").replaceChildren(
    ...choices.map(({ value, text, share, matches }) => {
      const radio = el("input", { type: "radio", name: "token", value, checked: value === "all" });
      radio.onchange = () => showPicture(now, value);
      const shown = el("span", { textContent: text });
      shown.append(el("i", { style: { width: percent(share).replace(" ", "") } }));
      return el("label", { className: matches ? "" : "dim", title: matches ? "" : "Matches nothing clearly" }, radio, shown);
    }),
  );
}

function showRegions(regions) {
  $("places").hidden = !regions.length;
  $("regions").replaceChildren(
    ...regions.map(({ box, share, tokens, text }, number) => {
      const words = text.length > 240 ? `${text.slice(0, 240).replace(/\s\S*$/, "")} ...` : text;
      const button = el("button", { type: "button" },
        el("b", { textContent: `${number + 1}. ${tokens.join(", ")} (${percent(share)})` }), el("q", { textContent: words }));
      button.setAttribute("aria-pressed", "false");
      const [left, top, right, bottom] = box.map((side) => 100 * side);
      const frame = () => {
        Object.assign($("frame").style, {
          left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%`,
        });
        $("frame").hidden = false;
      };
      const away = () => {
        $("frame").hidden = true;
        $("regions").querySelector("[aria-pressed=true]")?.frame();
      };
      button.frame = frame;
      button.onmouseenter = button.onfocus = frame;
      button.onmouseleave = button.onblur = away;
      button.onclick = () => {
        const chosen = button.getAttribute("aria-pressed") !== "true";
        for (const other of $("regions").querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
        button.setAttribute("aria-pressed", String(chosen));
        frame();
        if (chosen) $("frame").scrollIntoView({ block: "center", behavior: "smooth" });
      };
      return el("li", {}, button);
    }),
  );
}

function closePage() {
  if (history.state?.ours && wanted().page) history.back();
  else go({ page: null }, { replace: true });
}

// ---- files

const MEGABYTE = 1 << 20;
let sending = Promise.resolve();
const local = new Map(); // files that are not with the server yet, or were refused by it: name -> what is shown
let polling = null;
let listed = [];

function addFiles(files) {
  for (const file of files) sending = sending.then(() => send(file));
}

async function send(file, instead) {
  if (file.size > state.max_upload_bytes) {
    return refuse(file, `${file.name} is too large: files of ${state.max_upload_bytes / MEGABYTE} MB are taken at most.`);
  }
  local.set(file.name, { message: "Sending ..." });
  showUploads();
  try {
    const parameters = { name: file.name, ...(instead && { instead }) };
    const upload = await askJson("uploads", parameters, { method: "POST", body: file });
    local.delete(file.name);
    listed.push(upload);
  } catch (error) {
    return refuse(file, error.message, error.answer?.taken);
  }
  showUploads();
  poll();
}

function refuse(file, message, taken = false) {
  local.set(file.name, { message, failed: true, file: taken ? file : null });
  $("told").textContent = message;
  showUploads();
}

async function poll() {
  clearTimeout(polling);
  try {
    const before = new Map(listed.map((upload) => [upload.number, upload.state]));
    listed = (await askJson("uploads")).uploads;
    const over = listed.filter((one) => ["done", "failed"].includes(one.state));
    const news = over.filter((one) => before.has(one.number) && before.get(one.number) !== one.state);
    if (news.length) $("told").textContent = news.map((one) => `${one.file_name}: ${one.message}`).join(" ");
    if (news.some((one) => one.state === "done")) {
      await readState();
      found.key = null;
      show();
    }
    if (over.length < listed.length) polling = setTimeout(poll, 300);
  } catch (error) {
    fail(error);
    polling = setTimeout(poll, 3000);
  }
  showUploads();
}

function showUploads() {
  const here = [...local].map(([file_name, more]) => ({ file_name, state: more.failed ? "failed" : "sending", ...more }));
  const lines = [...listed.slice().reverse(), ...here].slice(0, 8);
  const held = document.activeElement?.closest?.("#uploads button")?.textContent;
  $("uploads").replaceChildren(...lines.map(uploadLine));
  if (held) [...$("uploads").querySelectorAll("button")].find((one) => one.textContent === held)?.focus();
}

function uploadLine(upload) {
  const line = el("li", { className: upload.state }, el("b", { textContent: upload.file_name }));
  let told = upload.message.replace(`${upload.file_name}: `, ""); // which stands above it
  if (upload.state === "waiting") told = "Waits for the files before it";
  if (upload.state === "indexing") {
    told = upload.total ? `${upload.read} of ${plural(upload.total, "page")} read, ${upload.stored} stored` : "Being read ...";
    const progress = el("progress", {});
    progress.setAttribute("aria-label", `Indexing ${upload.file_name}`);
    if (upload.total) Object.assign(progress, { max: 2 * upload.total, value: upload.read + upload.stored });
    line.append(progress);
  }
  line.append(el("span", { textContent: told }));
  if (upload.file) {
    const again = (text, instead) =>
      el("button", { type: "button", className: "quiet", textContent: text, onclick: () => {
        sending = sending.then(() => send(upload.file, instead));
      } });
    line.append(el("div", {}, again("Replace it", "replace"), again("Keep both", "keep")));
  }
  return line;
}

// ---- answers

let answering = new AbortController();

async function answer() {
  const q = $("query").value.trim();
  if (!q) return $("query").focus();
  if (q !== wanted().q) await go({ q, most: PAGE_OF_HITS, page: null });
  const { files } = wanted();
  answering.abort();
  answering = new AbortController();
  const { signal } = answering;
  $("error").textContent = "";
  $("said").textContent = $("shown").textContent = "";
  $("answer").hidden = false;
  $("ask").disabled = true;
  try {
    const response = await ask("answer", {}, { method: "POST", body: JSON.stringify({ q, files }), signal });
    let text = "";
    let pages = [];
    for await (const said of lines(response.body)) {
      if (signal.aborted) return;
      if (said.error) throw new Refused(said.error, {});
      if (said.pages) {
        pages = said.pages;
        $("shown").replaceChildren("The model was shown: ", ...pages.map((page) => citation(page)));
      }
      if (said.piece) $("said").replaceChildren(...cited((text += said.piece), pages));
    }
  } catch (error) {
    if (!$("said").textContent) $("answer").hidden = true;
    fail(error);
  } finally {
    $("ask").disabled = false;
  }
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      throw new Refused("The answer broke off: the server has ended, or the connection was lost.", {});
    });
    if (done) return;
    const parts = (held + value).split("\n");
    held = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

// The model cites pages as [report.pdf, page 4].
function cited(text, pages) {
  const parts = [];
  let at = 0;
  for (const match of text.matchAll(/\[([^[\]]+)\]/g)) {
    const named = match[1].split(";").map((part) => pages.find((page) => page.title === part.trim()));
    if (named.includes(undefined)) continue;
    parts.push(text.slice(at, match.index), ...named.map(citation));
    at = match.index + match[0].length;
  }
  return [...parts, text.slice(at)];
}

const citation = (page) =>
  el("button", { type: "button", textContent: page.title, onclick: () => go({ page: page.page_id }) });

// ---- what is done on the page

$("search").onsubmit = (event) => {
  event.preventDefault();
  const q = $("query").value.trim();
  if (q === wanted().q && q) found.key = null;
  go({ q, most: PAGE_OF_HITS, page: null });
};
$("ask").onclick = answer;
$("more").onclick = () => go({ most: wanted().most + PAGE_OF_HITS }, { replace: true });
$("narrow").oninput = narrow;
$("close").onclick = closePage;
$("page").oncancel = (event) => {
  event.preventDefault();
  closePage();
};
$("page").onclick = (event) => {
  if (event.target === $("page")) closePage();
};
$("choose").onchange = () => {
  addFiles([...$("choose").files]);
  $("choose").value = "";
};
addEventListener("popstate", () => show());

const holdsFiles = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
addEventListener("dragover", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  $("over").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("over").hidden = true;
});
addEventListener("drop", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  $("over").hidden = true;
  addFiles([...event.dataTransfer.files]);
});

const wide = matchMedia("(min-width: 861px)");
const fold = () => {
  $("documents").open = wide.matches;
};
wide.onchange = fold;
fold();

await readState().catch(fail);
await show();
if (!wanted().page) $("query").focus();
poll();
