// One page, no cookies: the key and the place in the study live in this tab only.
const $ = (id) => document.getElementById(id);
const memory = window.sessionStorage;
const headers = () => (memory.key ? { Authorization: `Bearer ${memory.key}` } : {});

memory.rater ||= crypto.randomUUID ? crypto.randomUUID() : `r${Math.random().toString(36).slice(2)}`;
let items = [];
let shown = null;

// A generator of random numbers from the rater's name: a reload keeps order and sides.
function randomOf(text) {
  let state = 2166136261;
  for (const letter of text) state = Math.imul(state ^ letter.charCodeAt(0), 16777619);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffled(list, random) {
  const out = [...list];
  for (let i = out.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  if (answer.status === 401) { delete memory.key; show("door"); throw new Error("This key does not fit."); }
  if (!answer.ok) throw new Error(`The server answers ${answer.status}; try again.`);
  return answer;
}

function show(part) {
  for (const id of ["door", "trial", "end"]) $(id).hidden = id !== part;
}

async function picture(id, name) {
  const data = await (await ask(`/pictures/${name}`)).blob();
  URL.revokeObjectURL($(id).src);
  $(id).src = URL.createObjectURL(data);
  await $(id).decode();
}

async function next() {
  const done = Number(memory.done || 0);
  $("bar").max = items.length;
  $("bar").value = done;
  $("count").textContent = `${done} of ${items.length}`;
  if (done >= items.length) { show("end"); return; }
  const { item, turned } = items[done];
  const [left, right] = turned ? [item.two, item.one] : [item.one, item.two];
  await Promise.all([
    picture("sketch", item.sketch), picture("reference", item.reference),
    picture("left-picture", left), picture("right-picture", right),
  ]);
  shown = { item: item.id, left, right, since: performance.now() };
  show("trial");
  enable(true);
}

function enable(on) { $("left").disabled = $("right").disabled = !on; }

async function choose(side) {
  if (!shown || $("left").disabled) return;
  enable(false);
  const body = JSON.stringify({
    rater: memory.rater, item: shown.item, left: shown.left, chosen: shown[side],
    milliseconds: Math.round(performance.now() - shown.since),
  });
  try {
    await ask("/answers", { method: "POST", body, headers: { "Content-Type": "application/json" } });
    memory.done = Number(memory.done || 0) + 1;
    $("message").textContent = "";
    await next();
  } catch (error) {
    $("message").textContent = error.message;
    enable(true);
  }
}

async function begin() {
  try {
    const study = await (await ask("/study.json")).json();
    const random = randomOf(memory.rater);
    items = shuffled(study.items, random).map((item) => ({ item, turned: random() < 0.5 }));
    $("question").textContent = study.question;
    $("message").textContent = "";
    await next();
  } catch (error) {
    if (memory.asked) $("message").textContent = error.message;
    memory.asked = "yes";
  }
}

$("left").addEventListener("click", () => choose("left"));
$("right").addEventListener("click", () => choose("right"));
document.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") choose("left");
  if (event.key === "ArrowRight") choose("right");
});
$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  memory.key = $("key").value.trim();
  begin();
});
begin();
