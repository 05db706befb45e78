"use strict";
const part = (id) => document.getElementById(id);
const choice = part("choice");
let chosen = 0, start = 0, busy = false, again = false;

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store" });
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

function step(side) {
  const option = part(`operation${side}`).selectedOptions[0];
  const slider = part(`magnitude${side}`), moves = option.dataset.moves === "1";
  const level = Number(slider.value).toFixed(1);
  slider.disabled = !moves;
  part(`level${side}`).textContent = moves ? level : "none";
  return moves ? `${option.value}:${level}` : option.value;
}

// One request at a time: otherwise a moving slider would queue requests whose answers nobody needs any more.
async function weigh() {
  again = true;
  step(1);
  step(2);
  if (busy) return;
  busy = true;
  while (again) {
    again = false;
    await weighOnce();
  }
  busy = false;
}

async function weighOnce() {
  const text = `${step(1)},${step(2)}`;
  try {
    const query = new URLSearchParams({ image: chosen, transformation: text });
    const found = await ask(`weigh?${query}`);
    part("problem").textContent = "";
    part("before").src = found.before;
    part("before").alt = `the image, class ${found.class}`;
    part("after").src = found.after;
    part("after").alt = `the image after ${found.transformation}`;
    part("spelled").textContent = found.transformation;
    part("weight").textContent = `weight ${found.weight.toFixed(3)}`;
    part("rank").textContent = `rank ${found.rank} of ${found.of}`;
    part("more").textContent = `Weight of the unchanged image: ${found.as_it_is.toFixed(3)}. ` +
      `p of this pair: ${(100 * found.probability).toFixed(3)} %. Class ${found.class}.`;
    document.body.dataset.shown = `${chosen} ${text}`;
  } catch (problem) {
    part("problem").textContent = `No answer: ${problem.message}`;
  }
}

async function showImages() {
  try {
    const images = await ask(`images?start=${start}`);
    choice.replaceChildren(...images.map((entry, place) => {
      const label = document.createElement("label"), radio = document.createElement("input");
      const picture = document.createElement("img");
      radio.type = "radio";
      radio.name = "image";
      radio.value = entry.image;
      radio.checked = place === 0;
      picture.src = entry.picture;
      picture.alt = `class ${entry.class}, image ${entry.image}`;
      label.append(radio, picture);
      return label;
    }));
    chosen = images[0].image;
    await weigh();
  } catch (problem) {
    part("problem").textContent = `No answer: ${problem.message}`;
  }
}

choice.addEventListener("change", (event) => {
  chosen = Number(event.target.value);
  weigh();
});
for (const side of [1, 2]) {
  part(`operation${side}`).addEventListener("change", weigh);
  part(`magnitude${side}`).addEventListener("input", weigh);
}
part("others").addEventListener("click", () => {
  start += Number(choice.dataset.step);
  if (start >= Number(choice.dataset.images)) start = 0;
  showImages();
});
part("draw").addEventListener("click", async () => {
  try {
    const drawn = await ask("draw");
    part("operation1").value = drawn.first;
    part("operation2").value = drawn.second;
    part("magnitude1").value = drawn.magnitude1;
    part("magnitude2").value = drawn.magnitude2;
    await weigh();
  } catch (problem) {
    part("problem").textContent = `No answer: ${problem.message}`;
  }
});
showImages();
