"""From predictions and labels to one report: patients, subgroups, comparisons, worst cases, figures."""
