for (const { id, spec } of gpubench.data.pipeline?.charts ?? []) {  // the stages of the whole pipeline
  gpubench.lazy(document.getElementById(id), (element) => gpubench.embed(element, spec));
}
