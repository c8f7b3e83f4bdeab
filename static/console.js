// What pages cannot do without a script: dialogs, menus that keep, announcements, asking less often when nobody looks.
"use strict";

const dialog = document.getElementById("dialog");
const watch = () => document.getElementById("watch");
let opener = null;
let asked = 0;

document.documentElement.dataset.live = "";

document.cookie = `zone=${Intl.DateTimeFormat().resolvedOptions().timeZone}; path=/; max-age=31536000; samesite=lax`;

// A dialog is filled by htmx, then shown; closing it gives the focus back to what opened it.
document.addEventListener("htmx:afterSwap", (event) => {
  if (event.detail.target !== dialog || dialog.open) return;
  const menu = document.activeElement.closest("[popover]");
  opener = menu ? buttonOf(menu) : document.activeElement;
  dialog.showModal();
});
dialog?.addEventListener("close", () => {
  dialog.replaceChildren();
  opener?.focus();
});
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-close]") && dialog.open) dialog.close();
});

// An answer that is no dialog is told in the one that asked, which stays as it was typed; if there is none yet, the page
// of the same address says why.
function tell(event) {
  const { xhr, target, requestConfig, pathInfo } = event.detail;
  const ours = xhr.getResponseHeader("X-Notice");
  if (!ours && (xhr.status === 422 || (xhr.status && xhr.status < 400))) return;
  event.detail.shouldSwap = false;
  if (target === dialog) location.assign(pathInfo.requestPath);
  const sheet = requestConfig.elt.closest(".sheet");
  if (!sheet) return;
  const [notice, token] = [sheet.querySelector(".notice"), sheet.querySelector("[name=csrfmiddlewaretoken]")];
  notice.innerHTML = ours ? xhr.responseText : document.getElementById("silence").innerHTML;
  token.replaceWith(notice.querySelector("[name=csrfmiddlewaretoken]") ?? token);
}
document.addEventListener("htmx:beforeSwap", tell);
document.addEventListener("htmx:sendError", tell);

// What happened on the page before is announced once this one is there.
document.getElementById("announce")?.append(document.querySelector("[data-say]")?.textContent ?? "");

// A menu closes when the focus goes elsewhere; Escape gives it back to the button.
const openMenu = () => document.querySelector("[popover]:popover-open");
const buttonOf = (menu) => document.querySelector(`[popovertarget="${menu.id}"]`);
document.addEventListener("focusin", (event) => {
  const menu = openMenu();
  if (menu && !menu.contains(event.target) && event.target !== buttonOf(menu)) menu.hidePopover();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && openMenu()) buttonOf(openMenu()).focus();
});

// An open menu is not taken away: it is renewed once it closes.
document.addEventListener("htmx:oobBeforeSwap", (event) => {
  const { target, fragment } = event.detail;
  if (!target.matches(":popover-open")) return;
  event.detail.shouldSwap = false;
  const fresh = fragment.firstElementChild;
  target.ontoggle = () => { target.replaceWith(fresh); htmx.process(fresh); };
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
