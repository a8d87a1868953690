// Runs before the page is painted: the reader's choice of light or dark, if there is one.
(() => {
  const choice = localStorage.getItem("theme");
  if (choice === "light" || choice === "dark") document.documentElement.dataset.theme = choice;
})();
