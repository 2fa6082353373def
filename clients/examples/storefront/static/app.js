// A single-page application that never sees a token: both are in cookies that code cannot read.
const $ = (id) => document.getElementById(id);

// One renewal at a time, in all tabs of the browser: whoever waited finds it done and repeats its request.
let renewal;
function renew() {
  renewal ??= navigator.locks.request("renew", () => fetch("/session/refresh", { method: "POST" }))
    .finally(() => { renewal = undefined; });
  return renewal;
}

// Sends a request; renews and repeats it once if the access token has died. Refused requests have done nothing.
async function send(path, options) {
  const answer = await fetch(path, options);
  if (answer.status !== 401) return answer;
  const { reason } = await answer.clone().json();
  if (!["TOKEN_EXPIRED", "TOKEN_OUTDATED"].includes(reason)) return answer;
  note(`renewed after ${reason}`);
  return (await renew()).ok ? fetch(path, options) : answer;
}

function note(text) {
  $("log").textContent = text;
}

function show(me) {
  $("in").hidden = !me;
  $("out").hidden = !!me;
  if (!me) return;
  const facts = { Account: me.account_id, Roles: me.roles.join(", "), Sencha: me.basket.sencha ?? 0 };
  $("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => {
    const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
    dt.textContent = name;
    dd.textContent = value;
    return [dt, dd];
  }));
}

async function load() {
  const answer = await send("/api/me");
  show(answer.ok ? await answer.json() : null);
}

$("login").onsubmit = async (event) => {
  event.preventDefault();
  const body = JSON.stringify(Object.fromEntries(new FormData(event.target)));
  const answer = await fetch("/session/login", { method: "POST", headers: { "content-type": "application/json" }, body });
  event.target.reset();
  $("problem").hidden = answer.ok;
  if (answer.ok) return load();
  $("problem").textContent = (await answer.json()).message;
};

$("buy").onclick = async () => {
  await send("/api/basket?item=sencha", { method: "POST" });
  await load();
};

$("logout").onclick = async () => {
  await fetch("/session/logout", { method: "POST" });
  await load();
};

load();
