import { defineConfig } from "vitest/config";

// A real browser against the built page; one at a time, it is a heavy guest.
export default defineConfig({
  test: {
    environment: "node",
    include: ["test/browser/**/*.test.ts"],
    fileParallelism: false,
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
