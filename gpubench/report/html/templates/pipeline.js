for (const { id, spec } of gpubench.data.path?.charts ?? []) {  // the stages of the whole path
  gpubench.lazy(document.getElementById(id), (element) => gpubench.embed(element, spec));
}
