// Small images are shown enlarged without smoothing (page.css).
() => document.addEventListener(
  "load",
  ({ target }) => {
    if (target.tagName === "IMG") target.classList.toggle("crisp", target.naturalWidth < 200);
  },
  true,
)
