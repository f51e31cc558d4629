// node component.mjs CORE.wasm POLICY.wit WORLD OUT.wasm
//
// Turns a core module that Go compiled for WASI 0.1 into a component: embeds the world, and wraps it
// with wasmtime's adapter from WASI 0.1 to 0.2. Requires the packages of package.json.

import { readFile, writeFile } from "node:fs/promises";

import { componentEmbed, componentNew, preview1AdapterReactorPath } from "@bytecodealliance/jco";

const [core, wit, world, out] = process.argv.slice(2);
const [binary, witSource] = [await readFile(core), await readFile(wit, "utf8")];
const embedded = await componentEmbed({ binary, witSource, world });
const adapter = await readFile(preview1AdapterReactorPath());
await writeFile(out, await componentNew(embedded, [["wasi_snapshot_preview1", adapter]]));
