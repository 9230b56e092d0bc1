// A picture that is paused gives way to a still of itself: browsers cannot stop a GIF.
const pictures = [...document.querySelectorAll('img.picture[src^="data:image/gif"]')];
const button = document.getElementById("pause");
let paused = false;

function still(picture) {
  const canvas = document.createElement("canvas");
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
  canvas.className = "picture";
  canvas.getContext("2d").drawImage(picture, 0, 0);
  return canvas;
}

function toggle() {
  paused = !paused;
  for (const picture of pictures) {
    if (paused) picture.after(still(picture));
    else picture.nextElementSibling.remove();
    picture.hidden = paused;
  }
  button.textContent = paused ? "Play animations" : "Pause animations";
}

if (pictures.length) {
  button.hidden = false;
  button.addEventListener("click", toggle);
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (calm) Promise.all(pictures.map((picture) => picture.decode())).then(toggle);
}
