import { render } from "preact";
import "uplot/dist/uPlot.min.css";
import "./style.css";
import { watch } from "./api";
import { Page } from "./components/Page";
import { Store } from "./store";

const store = new Store();
watch(store);
setInterval(() => store.sample(Date.now()), 1000);

const root = document.getElementById("page");
if (root) render(<Page store={store} />, root);
