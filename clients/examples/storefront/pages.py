"""The storefront's pages as text. Whatever comes from a request is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from identity_client.principal import Principal

ITEMS = {"sencha": "Sencha", "assam": "Assam", "rooibos": "Rooibos"}

_TASTES = {
    "sencha": "Green, grassy, first harvest.",
    "assam": "Black and malty; takes milk.",
    "rooibos": "Red, mild, sleeps well.",
}
_SENTENCES = {
    "BAD_CREDENTIALS": "Username or password is not right.",
    "OVERLOADED": "Many people are logging in. Please try again in a moment.",
    "THROTTLED": "There were too many attempts. Please try again in a while.",
    "DEPENDENCY_DOWN": "Logging in does not work at the moment. Please try again soon.",
    "PASSWORD_CHANGE_REQUIRED": "Please choose a new password before you go on.",
    "INVALID_FIELD": "A new password has at least 12 characters and is not a common one.",
}


def home(who: Principal | None, basket: Mapping[str, int]) -> str:
    """The teas. Who is not logged in is sent to the log-in by the first that is bought."""
    cards = "".join(
        f'<article class="card"><span class="leaf {key}"></span><h2>{name}</h2><p>{_TASTES[key]}</p>'
        f'<form method="post" action="/basket?item={key}"><button>Add to basket</button></form></article>'
        for key, name in ITEMS.items()
    )
    return _page("Tea, and little else", f'<section class="cards">{cards}</section>{_basket(basket)}', who)


def login(reason: str, target: str) -> str:
    """The form that the middleware's log-in takes."""
    form = f"""<form class="panel" method="post" action="/session/login">
      <h1>Log in</h1>{_notice(reason)}
      <label>Username <input name="username" autocomplete="username" required autofocus></label>
      <label>Password <input name="password" type="password" autocomplete="current-password" required></label>
      <input type="hidden" name="next" value="{escape(target)}"><button>Log in</button></form>"""
    return _page("Log in", form, None)


def password(reason: str) -> str:
    """The form for a new password."""
    form = f"""<form class="panel" method="post" action="/session/password">
      <h1>New password</h1>{_notice(reason)}
      <label>Username <input name="username" autocomplete="username" required></label>
      <label>Current password <input name="password" type="password" autocomplete="current-password" required></label>
      <label>New password <input name="new_password" type="password" autocomplete="new-password" required></label>
      <button>Change it</button></form>"""
    return _page("New password", form, None)


def account(who: Principal, basket: Mapping[str, int]) -> str:
    """What the application knows of its caller; the tab follows its session."""
    rows = {"Account": who.account_id, "Roles": ", ".join(who.roles) or "none", "Kept as": who.kind.replace("_", " ")}
    facts = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in rows.items())
    body = f"""<section class="panel"><h1>Your account</h1><dl id="facts">{facts}</dl>{_basket(basket)}
      <div class="row"><form method="post" action="/session/logout"><button id="logout">Log out</button></form>
      <form method="post" action="/session/logout-everywhere"><button class="quiet">Log out everywhere</button></form>
      </div></section><script src="/static/live.js"></script>"""
    return _page("Your account", body, who)


def till(who: Principal, baskets: Mapping[str, Mapping[str, int]]) -> str:
    """Everybody's basket, for managers."""
    rows = "".join(f"<li>{escape(account_id)}: {sum(basket.values())}</li>" for account_id, basket in baskets.items())
    return _page("Till", f'<section class="panel"><h1>Till</h1><ul>{rows}</ul></section>', who)


def application() -> str:
    """A single-page application: one empty page, and code that asks for the rest."""
    body = """<section class="panel" id="out" hidden><h1>Log in</h1><p class="notice" id="problem" hidden></p>
      <form id="login"><label>Username <input name="username" autocomplete="username" required></label>
      <label>Password <input name="password" type="password" autocomplete="current-password" required></label>
      <button>Log in</button></form></section>
      <section class="panel" id="in" hidden><h1>Your basket</h1><dl id="facts"></dl>
      <div class="row"><button id="buy">Add Sencha</button><button id="logout" class="quiet">Log out</button></div>
      <p class="small" id="log"></p></section><script type="module" src="/static/app.js"></script>"""
    return _page("Application", body, None, is_application=True)


def _page(title: str, body: str, who: Principal | None, is_application: bool = False) -> str:
    link = '<a href="/account">Account</a>' if who else "" if is_application else '<a href="/login">Log in</a>'
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
      <meta name="viewport" content="width=device-width, initial-scale=1">
      <title>{title} - Leaf &amp; Kettle</title><link rel="stylesheet" href="/static/style.css"></head>
      <body><header><a class="brand" href="/">Leaf &amp; Kettle</a><nav><a href="/app">App</a>{link}</nav></header>
      <main>{body}</main></body></html>"""


def _basket(basket: Mapping[str, int]) -> str:
    if not basket:
        return ""
    items = ", ".join(f"{count} x {ITEMS[item]}" for item, count in basket.items())
    return f'<p class="basket">In your basket: {items}</p>'


def _notice(reason: str) -> str:
    if not reason:
        return ""
    return f'<p class="notice" role="alert">{_SENTENCES.get(reason, "That did not work. Please try again.")}</p>'
