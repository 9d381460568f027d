// npm run test:browser [-- REPORT.xml]: builds the page if it is not, then tests it in Chromium.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const report = process.argv[2] && resolve(process.argv[2]);
const web = join(dirname(fileURLToPath(import.meta.url)), "..");
const run = (...argv) => {
  const done = spawnSync(process.execPath, argv, { cwd: web, stdio: "inherit" });
  if (done.status !== 0) process.exit(done.status ?? 1);
};
if (!existsSync(join(web, "dist", "index.html"))) run(join("node_modules", "vite", "bin", "vite.js"), "build");
run(join("node_modules", "vitest", "vitest.mjs"), "run", "--config", "vitest.browser.config.ts", "--reporter=default",
  ...(report ? ["--reporter=junit", `--outputFile.junit=${report}`] : []));
