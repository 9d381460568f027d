import { defineConfig } from "vitest/config";

// During `npm run dev` the API comes from a daemon or the mock server: FLOTILLA_API=http://127.0.0.1:PORT
const api = process.env["FLOTILLA_API"] ?? "http://127.0.0.1:8790";

export default defineConfig({
  build: {
    target: "es2022",
    assetsInlineLimit: 0,      // nothing inline: the page's policy allows files of its own only
    modulePreload: { polyfill: false },
    sourcemap: false,
  },
  server: { host: "127.0.0.1", proxy: { "/api": { target: api, changeOrigin: true } } },
  test: { environment: "node", include: ["test/unit/**/*.test.ts"] },
});
