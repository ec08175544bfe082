"""Operations of Bitfront: reads specs, decides, launches, remembers."""
