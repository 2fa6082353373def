// Follows the session of this tab: the server closes the socket when it ends, wherever that was done.
function follow() {
  const socket = new WebSocket(`${location.protocol.replace("http", "ws")}//${location.host}/live`);
  socket.onmessage = () => document.documentElement.dataset.live = "yes";
  socket.onclose = (event) => {
    delete document.documentElement.dataset.live;
    if (event.code === 4401) location.reload(); // the server renews, or sends to the log-in
    else setTimeout(follow, 1000 + 4000 * Math.random());
  };
}
follow();
