"use strict";
// /openapi.json for people: each route with a command that works, for whoever has a key with theirs. All text goes in as text.

const key = document.getElementById("key");

function element(kind, text, parent) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function command(path, operation) {
  const streams = operation.responses["200"]?.content?.["text/event-stream"];
  let where = path;
  for (const part of operation.parameters || []) {
    if (part.in === "path" && part.example !== undefined) where = where.replace(`{${part.name}}`, encodeURIComponent(part.example));
  }
  const parts = [`curl -s${streams ? "N" : ""} ${quoted(location.origin + where)}`];
  if (key.value && operation.security) parts.push(`-H ${quoted(`Authorization: Bearer ${key.value}`)}`);
  const content = operation.requestBody?.content["application/json"];
  if (content?.example !== undefined) {
    parts.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(content.example))}`);
  }
  return parts.join(" \\\n  ");
}

function card(path, method, operation, found) {
  const made = element("details");
  element("summary", `${method.toUpperCase()} ${path}: ${operation.summary || ""}`, made);
  element("p", operation.description || "", made);
  element("pre", command(path, operation), made);
  const list = element("dl", undefined, made);
  for (const [status, reply] of Object.entries(operation.responses)) {
    element("dt", status, list);
    element("dd", reply.description || "", list);
  }
  const schema = operation.responses["200"]?.content?.["application/json"]?.schema;
  if (schema?.$ref) element("pre", JSON.stringify(found.components.schemas[schema.$ref.split("/").pop()], null, 1), made);
  return made;
}

async function begin() {
  const answer = await fetch("/openapi.json", key.value ? { headers: { Authorization: `Bearer ${key.value}` } } : {});
  if (answer.status === 401) document.getElementById("key-label").hidden = false;
  const found = await answer.json();
  document.getElementById("problem").textContent = found.error?.message || "";
  if (!answer.ok) return;
  document.getElementById("about").textContent = found.info.description;
  // As a file of this page: a link to the route itself would carry no key.
  const whole = new Blob([JSON.stringify(found, null, 1)], { type: "application/json" });
  document.getElementById("whole").href = URL.createObjectURL(whole);
  const cards = Object.entries(found.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => card(path, method, operation, found)));
  document.getElementById("routes").replaceChildren(...cards);
}

const show = () => begin().catch((error) => { document.getElementById("problem").textContent = error.message; });
key.addEventListener("change", show);
show();
