// What pages cannot do without a script: open dialogs, spare open menus, ask less often when nobody looks.
"use strict";

const dialog = document.getElementById("dialog");
const watch = () => document.getElementById("watch");
let opener = null;
let asked = 0;

document.cookie = `zone=${Intl.DateTimeFormat().resolvedOptions().timeZone}; path=/; max-age=31536000; samesite=lax`;

// A dialog is filled by htmx, then shown; closing it gives the focus back to what opened it.
document.addEventListener("htmx:afterSwap", (event) => {
  if (event.detail.target !== dialog || dialog.open) return;
  const menu = document.activeElement.closest("[popover]");
  opener = menu ? document.querySelector(`[popovertarget="${menu.id}"]`) : document.activeElement;
  dialog.showModal();
});
dialog?.addEventListener("close", () => {
  dialog.replaceChildren();
  opener?.focus();
});
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-close]") && dialog.open) dialog.close();
});

// A dialog that cannot be had is a page that says why.
document.addEventListener("htmx:responseError", (event) => {
  if (event.detail.target === dialog) location.assign(event.detail.pathInfo.requestPath);
});

// An open menu is not taken away: it is renewed once it closes.
document.addEventListener("htmx:oobBeforeSwap", (event) => {
  const { target, fragment } = event.detail;
  if (!target.matches(":popover-open")) return;
  event.detail.shouldSwap = false;
  const fresh = fragment.firstElementChild;
  target.addEventListener("toggle", () => { target.replaceWith(fresh); htmx.process(fresh); }, { once: true });
});

// A hidden tab asks every ten seconds; one that is looked at again asks at once.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.target.id !== "watch") return;
  if (document.hidden && Date.now() - asked < 10000) event.preventDefault();
  else asked = Date.now();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && watch() && !dialog.open) htmx.trigger(watch(), "look");
});
