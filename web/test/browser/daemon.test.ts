// The page as the real daemon serves it, on the daemon's own events.
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import type { Page } from "playwright-core";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type Browser, launch } from "./chromium";

const build = process.env["FLOTILLA_BUILD_DIR"] ?? resolve(__dirname, "../../../build/release");
const program = join(build, "bin", "flotilla");
const folder = mkdtempSync(join(tmpdir(), "fl-web-"));
const environment = { PATH: process.env["PATH"] ?? "", HOME: join(folder, "home"), FLOTILLA_STATE_DIR: join(folder, "state"), FLOTILLA_CONFIG: join(folder, "config.toml") };
const flotilla = (...words: string[]): string => execFileSync(program, words, { env: environment, encoding: "utf8", cwd: folder });
let browser: Browser | undefined;
let page: Page;
const faults: string[] = [];

beforeAll(async () => {
  if (!existsSync(program)) throw new Error(`${program} is not built; run scripts/build, or name a build in $FLOTILLA_BUILD_DIR`);
  mkdirSync(environment.HOME);
  writeFileSync(environment.FLOTILLA_CONFIG, "");
  flotilla("daemon", "start");
  flotilla("pilot", "wait");
  browser = await launch();
  page = await browser.context.newPage();
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error" && !/ERR_|Failed to load resource/.test(message.text())) faults.push(message.text());
  });
  const { web_url: link } = JSON.parse(flotilla("daemon", "status", "--json")) as { web_url: string };
  await page.goto(link);
  await page.waitForSelector(".presence.live");
});
afterAll(async () => {
  await browser?.close();
  if (existsSync(environment.FLOTILLA_STATE_DIR)) flotilla("daemon", "stop", "--all");
  for (const process of started) await ended(process);
  rmSync(folder, { recursive: true, force: true });
});

const soon = { timeout: 20_000, interval: 20 };
const started: ChildProcess[] = [];
const ended = async (process: ChildProcess): Promise<void> => {
  if (process.exitCode !== null || process.signalCode !== null) return;
  const over = new Promise((done) => process.once("exit", done));
  process.kill();
  await over;
};
const tried = (port: number) => new Promise<boolean>((done) => {
  const socket = connect(port, "127.0.0.1", () => { socket.destroy(); done(true); });
  socket.on("error", () => done(false));
});

// Another machine, as far as ssh can tell: sshd on loopback that takes a key of this test's home. Its port.
async function startSshd(): Promise<number> {
  const place = join(folder, "sshd");
  mkdirSync(join(environment.HOME, ".ssh"), { mode: 0o700 });
  mkdirSync(place);
  if (process.getuid?.() === 0) mkdirSync("/run/sshd", { recursive: true });
  for (const key of [join(place, "key"), join(environment.HOME, ".ssh", "id_ed25519")])
    execFileSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", key]);
  const port = await new Promise<number>((done) => {
    const free = createServer().listen(0, "127.0.0.1", () => {
      const address = free.address();
      free.close(() => done(typeof address === "object" && address !== null ? address.port : 0));
    });
  });
  writeFileSync(join(place, "config"), [`ListenAddress 127.0.0.1`, `Port ${port}`, `HostKey ${place}/key`, "PidFile none", "StrictModes no", "UsePAM no",
    `AuthorizedKeysFile ${environment.HOME}/.ssh/id_ed25519.pub`, "PasswordAuthentication no", "KbdInteractiveAuthentication no", ""].join("\n"));
  const sshd = spawn("/usr/sbin/sshd", ["-D", "-e", "-f", join(place, "config")], { stdio: "ignore" });
  started.push(sshd);
  await expect.poll(() => tried(port), soon).toBe(true);
  expect(sshd.exitCode).toBeNull();
  return port;
}

// Calls a worker on `cluster` for as long as it lives, ten times a second or so; says its job and process, and how it ended.
const caller = `
import sys, flotilla
from flotilla import InputFile, worker
code = b"""#!/usr/bin/env python3
import time
from worker import WorkerProgram
program = WorkerProgram()

@program.array_function("float64 x -> float64 twice")
def double(x):
    time.sleep(0.05)
    return [2 * each for each in x]

raise SystemExit(program.run())
"""
with flotilla.Daemon(start=False) as daemon:
    files = [InputFile(name="code.py", content=code, mode=0o755), worker.source_file()]
    with daemon.start_worker("code.py", name="gravity", label="cluster", files=files) as started:
        print(started.id, started.info().pid, flush=True)
        with flotilla.RemoteCode(started) as remote:
            try:
                while True:
                    remote.double([1.0] * 1000)
            except worker.ChannelClosed as error:
                print(error, flush=True)
`;

it("shows the pilot of this machine, and jobs as they come and end, with the reason of what failed", async () => {
  expect(await page.locator("#pilots, .pilots").first().innerText()).toContain("local");
  const id = Number(flotilla("submit", "--", "sh", "-c", "read line").trim().split(/\s+/).pop());
  await page.waitForSelector(`#job-${id}`);
  const failing = spawn(program, ["run", "--", "sh", "-c", "echo no licence >&2; exit 3"], { env: environment, cwd: folder });
  expect(await new Promise((done) => failing.on("exit", done))).toBe(3);
  await page.waitForSelector(`#job-${id + 1}.failed`);
  const row = (await page.locator(`#job-${id + 1}`).innerText()).replace(/\s+/g, " ");
  expect(row).toContain("exited with code 3");
  expect(page.url(), "the token is not left in the address").not.toContain("token");
  expect(faults).toEqual([]);
});

it("shows another machine, its hub, pilot and worker as they come, what the worker does, and why it died", async () => {
  expect(await page.locator("#resources").innerText()).not.toContain("cluster");
  await page.evaluate(() => { document.body.dataset["stays"] = "yes"; });
  const port = await startSshd();
  flotilla("resource", "add", "cluster", "--location", `127.0.0.1:${port}`, "--scratch-dir", join(folder, "scratch"));
  const resource = page.locator("#resources .row", { hasText: "cluster" });
  await expect.poll(() => resource.innerText(), soon).toContain(`127.0.0.1:${port}`);
  const pilot = flotilla("pilot", "start", "cluster", "--slots", "3", "--accept-new").trim();
  await expect.poll(() => resource.innerText(), soon).toMatch(/hub on \S+/);
  const row = page.locator("#pilots .row", { hasText: `#${pilot}` });
  await expect.poll(() => row.innerText(), soon).toMatch(/cluster[^]*running[^]*0 of 3 slots in use/);

  const script = spawn("python3", ["-c", caller], { env: { ...environment, FLOTILLA_PROGRAM: program }, cwd: folder, stdio: ["ignore", "pipe", "inherit"] });
  started.push(script);
  const said = createInterface({ input: script.stdout })[Symbol.asyncIterator]();
  const [job, pid] = String((await said.next()).value).split(" ").map(Number) as [number, number];
  await expect.poll(() => row.innerText(), soon).toContain("1 of 3 slots in use");
  const worker = page.locator("#workers tr.pick", { hasText: "gravity" });
  const cell = async (number: number): Promise<string> => worker.locator("td").nth(number).innerText();
  expect(await cell(0)).toBe(String(job));
  expect(await cell(3)).toContain(`pilot ${pilot}`);
  await expect.poll(async () => Number((await cell(5)).replaceAll(",", "")), soon).toBeGreaterThan(10);
  await expect.poll(async () => Number.parseFloat(await cell(6)), soon).toBeGreaterThan(1);
  for (const flow of [8, 9]) {  // 8 kB in each call and in each answer
    await expect.poll(() => cell(flow), soon).toMatch(/[1-9][\d.]* [kM]i?B/);
    await expect.poll(() => cell(flow), soon).toMatch(/[1-9][\d.]* [kM]i?B\/s/);
  }

  process.kill(pid, "SIGKILL");
  const because = "was killed by signal 9 (SIGKILL)";
  await expect.poll(() => page.locator("#workers tr.under.failed").innerText(), soon).toContain(because);
  expect(String((await said.next()).value)).toContain(because);
  await expect.poll(() => row.innerText(), soon).toContain("0 of 3 slots in use");

  flotilla("pilot", "stop", pilot);
  flotilla("pilot", "wait", "--ended", pilot);
  await expect.poll(() => page.locator("#pilots > .rows > .row").allInnerTexts(), soon).not.toContainEqual(expect.stringContaining(`#${pilot}`));
  expect(await page.evaluate(() => document.body.dataset["stays"]), "the page was never loaded again").toBe("yes");
  expect(faults).toEqual([]);
});

it("comes back by itself after the daemon was restarted", async () => {
  flotilla("daemon", "restart");
  const id = Number(flotilla("submit", "--", "true").trim().split(/\s+/).pop());
  await page.waitForSelector(`#job-${id}.finished`);
  await page.waitForSelector(".presence.live");
  expect(faults).toEqual([]);
});
