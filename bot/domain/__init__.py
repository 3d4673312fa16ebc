"""Values that several rooms share: views of jobs, events, errors, sentences. Pure."""
