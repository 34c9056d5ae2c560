"""The ComfyUI face of the pack: thin nodes and the model patch.

- A node is one file: ``load``, ``apply``, ``schedule``, ``preview``, ``benchmark``, ``profile``, ``report``, ``check``.
  What only that node needs stands beside it under its name (``profile_probe``, ``report_image`` ...).
- The patch: ``settings`` (what is chosen) -> ``patch`` (put on a model) -> ``around`` (each model call and block)
  -> ``model_call`` (what this call runs, with the grid from ``layout``) -> ``override`` (each attention call) ->
  ``record`` and ``clock`` (what happened, for the report).
- What nodes share: ``_api`` (the host's node API), ``host`` (everything else asked of the host), ``model_facts``,
  ``video_size``, ``sentence``, ``drawing``, ``routes``.
- ``web/``: ``core`` computes what ``kernels`` computes and draws nothing, ``editor`` draws, ``fps_schedule.js`` puts it
  on the node; ``docs`` are the help pages.
"""
