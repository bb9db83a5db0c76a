// Images that are shown larger than they are keep their pixels (page.css).
() => document.addEventListener(
  "load",
  ({ target }) => {
    if (target.tagName === "IMG") target.classList.toggle("crisp", target.naturalWidth < 200);
  },
  true,
)
