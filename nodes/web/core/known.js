// Written by tests/fixtures/make_schedule_cases.py from kernels/; not edited by hand.

export const VERSION = 1;
export const MAX_PHASES = 20;
export const MAX_WORD = 40;
export const ATTENTIONS = ["dense", "bf16", "fp8"];
export const GRANULARITIES = ["token", "x1", "x2", "x4", "x8"];
export const SELECTORS = ["cdf", "heads", "sta", "svg", "topk"];
export const ARGUMENTS = {
  "cdf": [
    {
      "name": "attention mass",
      "low": 0.0,
      "high": 1.0,
      "example": "0.9",
      "required": true,
      "above": true,
      "density": false
    },
    {
      "name": "self-similarity gate",
      "low": -1.0,
      "high": 1.0,
      "example": "0.6",
      "required": false,
      "above": false,
      "density": false
    }
  ],
  "heads": [],
  "sta": [],
  "svg": [
    {
      "name": "density",
      "low": 0.0,
      "high": 1.0,
      "example": "0.3",
      "required": true,
      "above": true,
      "density": true
    }
  ],
  "topk": [
    {
      "name": "share of key tiles",
      "low": 0.0,
      "high": 1.0,
      "example": "0.15",
      "required": true,
      "above": true,
      "density": true
    },
    {
      "name": "self-similarity gate",
      "low": -1.0,
      "high": 1.0,
      "example": "0.6",
      "required": false,
      "above": false,
      "density": false
    }
  ]
};
export const SAYS = {
  "cdf": "key tiles up to a mass (SpargeAttn)",
  "heads": "per head, from a head table found offline (Sparse-vDiT)",
  "sta": "one of STA's windows per head, found by sampled rows",
  "svg": "spatial or temporal per head (SVG)",
  "topk": "the best key tiles by means"
};
export const ONLINE = ["cdf", "sta", "svg", "topk"];
export const PRESETS = {
  "mild": "# fps-schedule v1, unit sigma\n# until   attention   granularity   window t h w\n  0.92    dense\n  0.00    fp8         x1            all 60% 60%\n",
  "balanced": "# fps-schedule v1, unit sigma\n# until   attention   granularity   window t h w\n  0.90    fp8         x2            all 40% 30%\n  0.60    fp8         x1            all 50% 40%\n  0.00    fp8         x2            all 40% 35%\n",
  "fast": "# fps-schedule v1, unit sigma\n# until   attention   granularity   window t h w\n  0.90    fp8         x2            all 30% 25%\n  0.60    fp8         x1            all 40% 30%\n  0.00    fp8         x2            all 30% 30%\n",
  "dense": "# fps-schedule v1, unit sigma\n# until   attention   granularity   window t h w\n  0.00    dense\n",
  "few-step": "# fps-schedule v1, unit sigma\n# until   attention   granularity   window t h w\n  0.99    dense\n  0.00    fp8         x1            all 60% 60%\n"
};
