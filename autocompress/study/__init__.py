"""Running a study: where its facts are kept, the order of a trial's stages, and the loop over trials."""
