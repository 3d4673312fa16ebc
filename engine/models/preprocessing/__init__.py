"""Preprocessors: from a picture to the control image that a control network was trained with."""
