// Validates objects with the models of npm's @kubernetes-models; custom_resources.py starts it.
//
// stdin:  [{"model": "/folder/node_modules/.../VirtualService.js", "manifest": {...}}, ...]
// stdout: for each {"invalid": {pointer: [what its value must be, ...], ...}, "unknown": [pointer, ...]};
//         a pointer is a JSON pointer (RFC 6901)
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const inside = (pointer, key) => `${pointer}/${String(key).replaceAll("~", "~0").replaceAll("/", "~1")}`;
const isObject = (value) => typeof value === "object" && value !== null;

// The models let unknown fields pass. But they look at every field that they know: this is `value`
// with the pointers of all fields that were looked at noted in `seen`.
function watched(value, seen, pointer = "") {
  if (!isObject(value)) return value;
  return new Proxy(value, {
    get(target, key) {
      const field = inside(pointer, key);
      seen.add(field);
      return watched(target[key], seen, field);
    },
  });
}

function unseen(value, seen, pointer = "") {
  if (!isObject(value)) return [];
  return Object.keys(value).flatMap((key) => {
    const field = inside(pointer, key);
    return seen.has(field) ? unseen(value[key], seen, field) : [field];
  });
}

function invalid(Model, manifest) {
  try {
    Model.prototype.validate.call(manifest);
    return {};
  } catch (error) {
    if (!error.errors) throw error;
    // Kustomize folds base64 into lines: Kubernetes takes it, the models' format "byte" does not.
    const errors = error.errors.filter(({ params }) => params.format !== "byte");
    const fields = Object.groupBy(errors, ({ instancePath }) => instancePath);
    return Object.fromEntries(Object.entries(fields).map(([field, found]) => [field, found.map(requirement)]));
  }
}

function requirement({ message, params }) {
  return params.allowedValues ? `${message}: ${params.allowedValues.join(", ")}` : message;
}

async function check({ model, manifest }) {
  const Model = (await import(pathToFileURL(model)))[manifest.kind];
  const seen = new Set();
  const errors = invalid(Model, watched(manifest, seen));
  return { invalid: errors, unknown: unseen(manifest, seen) };
}

const requests = JSON.parse(readFileSync(0, "utf-8"));
console.log(JSON.stringify(await Promise.all(requests.map(check))));
