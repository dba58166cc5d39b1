"""The knowledge set: facts as plain data, their phrasings, the questions and texts made of them."""
