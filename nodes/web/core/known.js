// Written by tests/fixtures/make_schedule_cases.py from kernels/; not edited by hand.

export const VERSION = 1;
export const MAX_PHASES = 20;
export const MAX_WORD = 40;
export const ATTENTIONS = ["dense", "bf16", "fp8"];
export const GRANULARITIES = ["token", "x1", "x2", "x4", "x8"];
export const SELECTORS = [];
export const ARGUMENTS = {};
export const PRESETS = {
  "mild": "# fps-schedule v1, unit sigma\n# until   attention   granularity   window t h w\n  0.92    dense\n  0.00    fp8         x1            all 60% 60%\n",
  "balanced": "# fps-schedule v1, unit sigma\n# until   attention   granularity   window t h w\n  0.90    fp8         x2            all 40% 30%\n  0.60    fp8         x1            all 50% 40%\n  0.00    fp8         x2            all 40% 35%\n",
  "fast": "# fps-schedule v1, unit sigma\n# until   attention   granularity   window t h w\n  0.90    fp8         x2            all 30% 25%\n  0.60    fp8         x1            all 40% 30%\n  0.00    fp8         x2            all 30% 30%\n",
  "dense": "# fps-schedule v1, unit sigma\n# until   attention   granularity   window t h w\n  0.00    dense\n",
  "few-step": "# fps-schedule v1, unit sigma\n# until   attention   granularity   window t h w\n  0.99    dense\n  0.00    fp8         x1            all 60% 60%\n"
};
