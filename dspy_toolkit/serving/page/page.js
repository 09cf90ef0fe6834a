"use strict";
// A form made from a program's signature, and its fields as they stream in. All text goes in as text, never as HTML.

const $ = (id) => document.getElementById(id);
let about = null, running = null;

function element(kind, text, parent) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

async function call(path, options = {}) {
  const headers = { ...(options.headers || {}) };
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) $("key-label").hidden = false;
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({ error: { message: answer.statusText } }));
    const more = (said.error.details || []).map((each) => `${each.field}: ${each.message}`);
    throw new Error([said.error.message, ...more].join("\n"));
  }
  return answer;
}

const post = (path, body, signal) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

function problem(error) {
  $("problem").textContent = error ? error.message : "";
}

// The form

function resolved(schema, whole) {
  return schema.$ref ? { ...whole.$defs[schema.$ref.split("/").pop()], ...schema } : schema;
}

function field(name, given, whole) {
  let schema = resolved(given, whole);
  const optional = (schema.anyOf || []).some((part) => part.type === "null");
  if (optional) schema = { ...resolved(schema.anyOf.find((part) => part.type !== "null"), whole), description: schema.description };
  const label = element("label", name.replaceAll("_", " "));
  if (schema.description) element("span", ` (${schema.description})`, label);
  let input;
  const choices = schema.enum || (schema.const !== undefined ? [schema.const] : null);
  if (choices || schema.type === "boolean") {
    input = element("select", undefined, label);
    for (const choice of [...(optional ? [null] : []), ...(choices || [true, false])]) {
      element("option", choice === null ? "(none)" : String(choice), input).value = JSON.stringify(choice);
    }
  } else if (schema.type === "number" || schema.type === "integer") {
    input = element("input", undefined, label);
    input.type = "number";
    input.step = schema.type === "integer" ? "1" : "any";
    for (const [theirs, ours] of [["minimum", "min"], ["maximum", "max"]]) if (schema[theirs] !== undefined) input[ours] = schema[theirs];
  } else {
    input = element("textarea", undefined, label);
    if (schema.type !== "string") input.placeholder = "JSON";
    if (schema.maxLength) input.maxLength = schema.maxLength;
  }
  input.id = `field-${name}`;
  input.required = !optional;
  const example = about.example[name];
  if (example !== undefined) {
    if (input.tagName === "SELECT") input.value = JSON.stringify(example);
    else if (schema.type === "string") input.placeholder = String(example);
    else input.value = typeof example === "object" ? JSON.stringify(example) : String(example);
  }
  input.read = () => {
    if (input.tagName === "SELECT") return JSON.parse(input.value);
    if (optional && input.value === "") return null;
    if (input.type === "number") return Number(input.value);
    if (schema.type === "string") return input.value;
    try {
      return JSON.parse(input.value);
    } catch (error) {
      throw new Error(`${name.replaceAll("_", " ")}: that is no JSON: ${error.message}`);
    }
  };
  return label;
}

async function show(name) {
  problem(null);
  about = await (await call(`/v1/programs/${encodeURIComponent(name)}`)).json();
  $("summary").textContent = about.summary;
  $("fields").replaceChildren(...Object.entries(about.inputs.properties).map(([key, schema]) => field(key, schema, about.inputs)));
  const list = $("about").querySelector("dl");
  list.replaceChildren();
  const facts = {
    version: about.version ?? "none: the project's own program", model: about.model, optimizer: about.optimizer,
    levers: Object.entries(about.levers).flatMap(([key, said]) => said.map((word) => `${key}: ${word}`)).join("\n"),
    demonstrations: about.demonstrations, "trained on rows": about.trained_rows,
    scores: Object.entries(about.scores || {}).map(([key, said]) => `${key} ${JSON.stringify(said)}`).join("\n"),
    "falls back on": (about.falls_back_on || []).join("\n"), challenger: about.challenger && `version ${about.challenger}`,
    refused: about.refused && `version ${about.refused.version}: ${about.refused.why}`,
  };
  for (const [key, value] of Object.entries(facts)) {
    if (value === undefined || value === null || value === "") continue;
    element("dt", key, list);
    element("dd", String(value), list);
  }
}

// Asking

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n");
      const name = lines.find((line) => line.startsWith("event: "));
      const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (name) yield [name.slice(7), JSON.parse(data)];
    }
  }
}

function said(card, predictor, key, text, run = 1) {
  const list = card.querySelector(".outputs");
  const places = [...list.children].filter((each) => each.dataset.predictor === predictor);
  if (places.some((each) => Number(each.dataset.run) > run)) return;  // of two at once the later one is shown
  for (const each of places) {
    if (Number(each.dataset.run) < run) {  // it runs again, and begins anew
      each.dataset.run = run;
      each.textContent = "";
    }
  }
  let place = places.find((each) => each.dataset.field === key);
  if (!place) {
    element("dt", predictor === "self" || predictor === "" ? key : `${predictor}: ${key}`, list);
    place = element("dd", "", list);
    Object.assign(place.dataset, { predictor, run, field: key });
  }
  place.textContent += text;
}

function finish(card, reply) {
  const list = card.querySelector(".outputs");
  list.replaceChildren();
  const { probabilities, confidence, ...outputs } = reply.prediction;
  for (const [key, value] of Object.entries(outputs)) said(card, "", key, typeof value === "string" ? value : JSON.stringify(value, null, 1));
  const bars = card.querySelector(".bars");
  bars.replaceChildren();
  const best = probabilities && Math.max(...Object.values(probabilities));
  for (const [label, chance] of Object.entries(probabilities || {}).sort((a, b) => b[1] - a[1])) {
    const bar = element("div", undefined, bars);
    bar.className = chance === best ? "bar best" : "bar";
    element("span", label, bar);
    const meter = element("meter", `${(100 * chance).toFixed(1)} %`, bar);
    meter.value = chance;
    meter.ariaLabel = label;
    element("span", `${(100 * chance).toFixed(1)} %`, bar);
  }
  const t = reply.timings, u = reply.usage;
  const numbers = [`${(1000 * t.seconds).toFixed(0)} ms`, reply.cached ? "from the cache" : `${u.prompt_tokens} + ${u.completion_tokens} tokens`];
  if (t.decode_seconds !== undefined) numbers.push(`read in ${(1000 * t.prefill_seconds).toFixed(0)} ms, written in ${(1000 * t.decode_seconds).toFixed(0)} ms`);
  if (reply.agreement !== undefined) numbers.push(`${(100 * reply.agreement).toFixed(0)} % agree`);
  if (reply.fell_back.length) numbers.push(`fell back: ${reply.fell_back.join("; ")}`);
  card.querySelector(".numbers").textContent = numbers.join(" · ");
  card.querySelector("h2").textContent = `${reply.program.split("@")[0]}${reply.version ? `, version ${reply.version}` : ""}`;
  const sent = card.querySelector(".sent");
  for (const messages of reply.messages || []) {
    sent.hidden = false;
    for (const message of messages) {
      element("dt", message.role, sent);
      element("pre", typeof message.content === "string" ? message.content : JSON.stringify(message.content, null, 1), sent);
    }
  }
  const rate = card.querySelector(".rate");
  rate.hidden = false;
  for (const button of rate.querySelectorAll("button")) {
    button.onclick = () => post("/v1/feedback", { request_id: reply.request_id, rating: Number(button.dataset.rating) })
      .then(() => { rate.querySelector("span").textContent = "Noted."; }, problem);
  }
}

async function one(name, inputs, signal) {
  const card = $("answer").content.cloneNode(true).firstElementChild;
  card.querySelector("h2").textContent = name;
  $("answers").append(card);
  try {
    const query = $("prompt").checked ? "?messages=true" : "";
    const response = await post(`/v1/programs/${encodeURIComponent(name)}/stream${query}`, inputs, signal);
    for await (const [kind, data] of events(response)) {
      if (kind === "start") card.querySelector(".outputs").replaceChildren();
      if (kind === "field") said(card, data.predictor, data.field, data.text, data.run);
      if (kind === "prediction") finish(card, data);
      if (kind === "error") throw new Error(data.message);
    }
  } catch (error) {
    card.querySelector(".numbers").textContent = error.name === "AbortError" ? "Stopped." : error.message;
  }
}

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  problem(null);
  let inputs;
  try {
    inputs = Object.fromEntries(Object.keys(about.inputs.properties).map((key) => [key, $(`field-${key}`).read()]));
  } catch (error) {
    return problem(error);
  }
  running?.abort();
  running = new AbortController();
  const name = $("program").value, beside = $("beside").value.trim();
  const names = [name, ...(beside ? [beside.includes("@") ? beside : `${name.split("@")[0]}@${beside}`] : [])];
  $("answers").replaceChildren();
  $("stop").disabled = false;
  const mine = running;
  await Promise.all(names.map((each) => one(each, inputs, mine.signal)));
  if (mine === running) $("stop").disabled = true;
});
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
  if (event.key === "Escape") running?.abort();
});
$("program").addEventListener("change", () => show($("program").value).catch(problem));
$("key").addEventListener("change", () => begin().catch(problem));

async function begin() {
  const { programs } = await (await call("/v1/programs")).json();
  $("program").replaceChildren(...programs.map((each) => {
    const option = element("option", each.version ? `${each.name} (version ${each.version})` : each.name);
    option.value = each.name;
    return option;
  }));
  if (programs.length) await show(programs[0].name);
}
begin().catch(problem);
