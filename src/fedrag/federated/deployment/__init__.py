"""Federated training between real machines: Flower's SuperLink and SuperNodes, closed as far as they can be.

`docs/deployment.md` goes through it step by step, `docs/security.md` says what each measure keeps out and what not.

| file | what it does |
|---|---|
| `project` | the folder that is submitted, and a site's `site.toml` |
| `keys` | certificate authority, server certificate, one key pair for each site |
| `pins`, `supernode` | a site runs the code that its operator pinned, and no other |
| `gate` | a site reaches the server's fleet API, and nothing else of it |
| `server`, `site` | start both sides, and stop them whole |
| `submission` | submit, list, resume: Flower's own command with a configuration of its own |
| `worker`, `resident` | one process at a site keeps the base model loaded between rounds |
| `doctor` | what is wrong, a line each |
"""
