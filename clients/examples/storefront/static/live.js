// Follows the session of this tab: the server closes the socket when it ends, wherever that was done.
let leaving = false; // a form of this page is on its way, and its answer says where to go: a reload would cancel it
addEventListener("submit", () => leaving = true);
function follow() {
  const socket = new WebSocket(`${location.protocol.replace("http", "ws")}//${location.host}/live`);
  socket.onmessage = () => document.documentElement.dataset.live = "yes";
  socket.onclose = (event) => {
    delete document.documentElement.dataset.live;
    if (leaving) return;
    if (event.code === 4401) location.reload(); // the server renews, or sends to the log-in
    else setTimeout(follow, 1000 + 4000 * Math.random());
  };
}
follow();
