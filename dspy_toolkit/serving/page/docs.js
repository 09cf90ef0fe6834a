"use strict";
// /openapi.json for people: each route with a command that works. All text goes in as text.

function element(kind, text, parent) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function command(path, method, operation, document_) {
  const parts = [`curl -s ${location.origin}${path}`];
  const body = operation.requestBody?.content["application/json"].schema;
  if (body) {
    parts.push("-H 'Content-Type: application/json'", `-d '${JSON.stringify(example(body, document_)).replaceAll("'", "'\\''")}'`);
  }
  return parts.join(" \\\n  ");
}

function example(schema, document_) {
  if (schema.$ref) return example(document_.components.schemas[schema.$ref.split("/").pop()], document_);
  if (schema.example !== undefined) return schema.example;
  if (schema.properties?.messages) return { model: "MODEL", messages: [{ role: "user", content: "Hello" }], max_tokens: 20 };
  if (schema.properties?.request_id) return { request_id: "REQUEST_ID", rating: 1 };
  if (schema.properties) return Object.fromEntries(Object.entries(schema.properties).map(([key, part]) => [key, example(part, document_)]));
  return schema.type === "array" ? [example(schema.items, document_)] : "…";
}

fetch("/openapi.json").then((answer) => answer.json()).then(async (found) => {
  document.getElementById("about").textContent = found.info.description;
  for (const [path, methods] of Object.entries(found.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const card = element("details", undefined, document.getElementById("routes"));
      element("summary", `${method.toUpperCase()} ${path}: ${operation.summary || ""}`, card);
      element("p", operation.description || "", card);
      element("pre", command(path, method, operation, found), card);
      const list = element("dl", undefined, card);
      for (const [status, reply] of Object.entries(operation.responses)) {
        element("dt", status, list);
        element("dd", reply.description || "", list);
      }
      const schema = operation.responses["200"]?.content?.["application/json"]?.schema;
      if (schema?.$ref) element("pre", JSON.stringify(found.components.schemas[schema.$ref.split("/").pop()], null, 1), card);
    }
  }
});
