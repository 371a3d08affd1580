// The page of btray's server. It asks /v1/classify slice by slice and shows what it answers.
// Nothing is kept: the slices stay in this page's memory, the key in this tab's session.

const KEY = "btray-key";
const AT_ONCE = 4; // requests

const NAMES = {
  glioma: "Glioma",
  meningioma: "Meningioma",
  pituitary: "Pituitary tumour",
  notumor: "No tumour",
};

const byId = (id) => document.getElementById(id);
const named = (name) => NAMES[name] ?? name;
const percent = (p) => `${(100 * p).toFixed(1)} %`;

// ---------------------------------------------------------------- the server

class ServerError extends Error {
  constructor(message, requestId = null, status = 0) {
    super(message);
    this.requestId = requestId;
    this.mayPass = ![400, 413, 415, 422].includes(status);
  }
}

const ADVICE = {
  401: "Enter an API key of this server above, then try again.",
  403: "This key may not do that.",
  413: "Choose a smaller file.",
  429: "Too many requests with this key; try again in a moment.",
  503: "The server is busy or starting; try again in a moment.",
};

async function ask(path, options = {}) {
  const headers = { Accept: "application/json", ...options.headers };
  const key = byId("key").value.trim();
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached. Is it running?");
  }
  return read(response);
}

async function read(response) {
  const text = await response.text();
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    body = {};
  }
  if (response.ok && body) return body;
  const reason = body?.error?.message ?? `The server answered with status ${response.status}.`;
  const wait = Number(response.headers.get("Retry-After"));
  const advice = wait > 1 ? `Try again in ${wait} s.` : ADVICE[response.status];
  const id = body?.request_id ?? response.headers.get("X-Request-ID");
  throw new ServerError([sentence(reason), advice].filter(Boolean).join(" "), id, response.status);
}

function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

function classify(file, signal, explain = false) {
  const query = new URLSearchParams();
  if (byId("model").value) query.set("model", byId("model").value);
  if (explain) query.set("explain", "gradcam");
  const headers = { "Content-Type": "application/octet-stream" };
  return ask(`v1/classify?${query}`, { method: "POST", body: file, headers, signal });
}

async function showModels() {
  const server = byId("server");
  try {
    const { models } = await ask("v1/models");
    const chosen = byId("model").value || models[0].name;
    byId("model").replaceChildren(...models.map(({ name }) => new Option(name, name, false, name === chosen)));
    byId("model-field").hidden = models.length < 2;
    const list = models.map((model) => `${model.name} ${model.version}`).join(", ");
    server.textContent = `The server is ready. ${models.length > 1 ? "Models" : "Model"}: ${list}.`;
    server.classList.remove("error-text");
  } catch (error) {
    server.textContent = error.message;
    server.classList.add("error-text");
  }
}

// ---------------------------------------------------------------- the cards

const cards = new Set();
const waiting = [];
let running = 0;

function addFiles(files) {
  for (const file of files) {
    const card = newCard(file);
    cards.add(card);
    byId("results").append(card.element);
    enqueue(card);
  }
  showProgress();
}

function newCard(file) {
  const element = byId("card").content.firstElementChild.cloneNode(true);
  const find = (selector) => element.querySelector(selector);
  const card = { file, element, find, abort: new AbortController(), done: false, picture: null };
  card.url = URL.createObjectURL(file);
  find(".name").textContent = file.name;
  const image = find(".slice");
  image.alt = `Slice ${file.name}`;
  image.addEventListener("error", () => showNoPicture(card));
  image.src = card.url;
  find(".again").addEventListener("click", () => enqueue(card));
  find(".explain").addEventListener("click", () => toggleExplanation(card));
  return card;
}

function showNoPicture(card) {
  card.find(".slice").hidden = true;
  card.find(".no-picture").hidden = false;
}

function enqueue(card) {
  card.done = false;
  card.find(".error").hidden = true;
  card.find(".request").hidden = true;
  showState(card, "Waiting …");
  waiting.push(card);
  next();
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    work(waiting.shift()).finally(() => {
      running -= 1;
      showProgress();
      next();
    });
  }
}

async function work(card) {
  if (!cards.has(card)) return;
  showState(card, "Asking …");
  try {
    const answer = await classify(card.file, card.abort.signal);
    showAnswer(card, answer);
  } catch (error) {
    if (error.name === "AbortError") return;
    showError(card, error);
  }
  card.done = true;
}

function showState(card, text) {
  card.find(".state").textContent = text;
  card.find(".state").hidden = !text;
}

function showError(card, error) {
  showState(card, "");
  card.find(".error-text").textContent = error.message;
  card.find(".again").hidden = error.mayPass === false;
  card.find(".error").hidden = false;
  showRequest(card, error.requestId);
  announce(`${card.file.name}: ${error.message}`);
  if (!(error instanceof ServerError)) throw error;
}

function showRequest(card, id) {
  card.find(".request").hidden = !id;
  card.find(".request code").textContent = id ?? "";
}

function showAnswer(card, answer) {
  const { find } = card;
  const [verdict, detail] = judge(answer);
  showState(card, "");
  find(".verdict").textContent = verdict;
  find(".verdict-detail").textContent = detail;
  card.element.classList.toggle("unsure", answer.abstain || answer.out_of_distribution);
  showProbabilities(card, answer);
  const set = answer.prediction_set.map(named).join(", ");
  find(".set").textContent = set || "empty";
  find(".strangeness").textContent = answer.ood_score.toFixed(2);
  find(".model").textContent = `${answer.model.name} ${answer.model.version}`;
  find(".result").hidden = false;
  showRequest(card, answer.request_id);
  announce(`${card.file.name}: ${verdict}. ${detail}`);
}

// What is said first: the class, or, where there is no answer, that and why.
function judge(answer) {
  if (answer.out_of_distribution) {
    return ["No answer", "This image is unlike the slices that the model knows."];
  }
  const set = answer.prediction_set.map(named);
  if (answer.abstain && set.length > 1) {
    return ["No answer", `The model cannot tell these apart here: ${set.join(", ")}.`];
  }
  if (answer.abstain) return ["No answer", "The model is not sure enough of any class."];
  return [named(answer.class), `Calibrated probability ${percent(answer.probabilities[answer.class])}`];
}

function showProbabilities(card, answer) {
  const unsure = answer.abstain || answer.out_of_distribution;
  card.find("caption").textContent = unsure
    ? "Calibrated probabilities, which are no answer here"
    : "Calibrated probabilities";
  const rows = Object.entries(answer.probabilities).map(([name, p]) => probabilityRow(name, p));
  card.find("tbody").replaceChildren(...rows);
}

function probabilityRow(name, p) {
  const row = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = named(name);
  const value = document.createElement("td");
  value.textContent = percent(p);
  value.className = "number";
  const cell = document.createElement("td");
  cell.className = "track";
  cell.setAttribute("aria-hidden", "true");
  const bar = document.createElement("span");
  bar.style.width = `${100 * p}%`;
  cell.append(bar);
  row.append(head, value, cell);
  return row;
}

// ---------------------------------------------------------------- Grad-CAM

async function toggleExplanation(card) {
  const button = card.find(".explain");
  if (button.getAttribute("aria-pressed") === "true") {
    showPicture(card, card.url, `Slice ${card.file.name}`, "", false);
    return;
  }
  card.find(".explain-error").hidden = true;
  try {
    card.picture ??= await explanation(card, button);
  } catch (error) {
    if (error.name === "AbortError") return;
    card.find(".explain-error").textContent = error.message;
    card.find(".explain-error").hidden = false;
    announce(error.message);
    return;
  }
  const { png, ...about } = card.picture;
  const caption = `Grad-CAM: what spoke for ${named(about.class)}`;
  showPicture(card, `data:image/png;base64,${png}`, `${caption}, in ${card.file.name}`, caption, true);
  announce(caption);
}

async function explanation(card, button) {
  button.disabled = true;
  button.textContent = "Asking …";
  try {
    const answer = await classify(card.file, card.abort.signal, true);
    if (!answer.explanation) throw new ServerError("The server sent no Grad-CAM.");
    return answer.explanation;
  } finally {
    button.disabled = false;
    button.textContent = "Show Grad-CAM";
    button.focus({ preventScroll: true });
  }
}

function showPicture(card, source, alt, caption, explained) {
  const image = card.find(".slice");
  image.hidden = false;
  card.find(".no-picture").hidden = true;
  image.alt = alt;
  image.src = source;
  card.find("figcaption").textContent = caption;
  const button = card.find(".explain");
  button.setAttribute("aria-pressed", String(explained));
}

// ---------------------------------------------------------------- the page

function announce(text) {
  byId("live").textContent = text;
}

function showProgress() {
  const done = [...cards].filter((card) => card.done).length;
  byId("none").hidden = cards.size > 0;
  byId("clear").hidden = cards.size === 0;
  byId("progress").textContent = cards.size ? `${done} of ${cards.size} done` : "";
}

function clear() {
  for (const card of cards) {
    card.abort.abort();
    URL.revokeObjectURL(card.url);
  }
  cards.clear();
  waiting.length = 0;
  byId("results").replaceChildren();
  announce("Cleared.");
  showProgress();
  byId("results-title").focus();
}

function listen() {
  const [input, drop, key] = ["files", "drop", "key"].map(byId);
  input.addEventListener("change", () => {
    addFiles(input.files);
    input.value = ""; // the same file may be chosen again
  });
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    addFiles(event.dataTransfer.files);
  });
  key.value = sessionStorage.getItem(KEY) ?? "";
  key.addEventListener("change", () => {
    if (key.value) sessionStorage.setItem(KEY, key.value);
    else sessionStorage.removeItem(KEY);
    showModels();
  });
  byId("clear").addEventListener("click", clear);
}

listen();
showModels();
