"""Small lesions as instances: normalise, propose, discriminate, clean, evaluate. Cerebral microbleeds are one case."""
